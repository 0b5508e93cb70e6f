"""Predictions of the same latents share the UNet's layers before its first attention."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from nfsd3d.prior.compiled.shared_start import PROBE, can_share, distinct, shared
from nfsd3d.prior.networks import first_weight

ATTENTION_LATER = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
ATTENTION_FIRST = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def unet(**changes) -> UNet2DConditionModel:
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "cross_attention_dim": 12}
    settings = {**sizes, **ATTENTION_LATER, "layers_per_block": 1, "attention_head_dim": 2, **changes}
    return UNet2DConditionModel(**settings).eval().requires_grad_(False)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        ATTENTION_FIRST,
        {"layers_per_block": 2},
        {**ATTENTION_FIRST, "layers_per_block": 2, "transformer_layers_per_block": 2},
        {"resnet_time_scale_shift": "scale_shift"},
    ],
)
@pytest.mark.parametrize("entries", [[0, 1, 2, 0, 1, 2, 2], [1, 0, 0], [0, 0], [0, 1, 2], [0]])
def test_shared_predictions_equal_those_of_each_latent(changes, entries):
    network = unet(**changes)
    assert can_share(network)
    rng = torch.Generator().manual_seed(1)
    place, count = torch.tensor(entries), max(entries) + 1
    latents, tokens = torch.randn(count, 4, 8, 8, generator=rng), torch.randn(len(entries), 5, 12, generator=rng)
    t = 900.0 * torch.rand(count, generator=rng)

    def denoise(latents, t, tokens):
        return network(latents, t, tokens, return_dict=False)[0]

    found = shared(denoise, network)(latents, t, tokens, place)
    torch.testing.assert_close(found, denoise(latents[place], t[place], tokens), rtol=1e-4, atol=1e-5)
    assert len(place) == 1 or (found[0] - found[1]).abs().max() > 1e-3, "predictions are alike anyway"
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize(
    "changes",
    [
        {"class_embed_type": "timestep"},
        {"mid_block_type": "UNetMidBlock2D"},
        {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")},
        {"addition_embed_type": "text", "encoder_hid_dim": 12},
    ],
)
def test_other_unets_do_not_share(changes):
    assert not can_share(unet(**changes))


def test_other_networks_do_not_share():
    assert not can_share(torch.nn.Identity())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_distinct_latents(dtype):
    latents = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    latents[1, 0, 0, 0] = torch.nan
    latents, t = latents[[0, 1, 0, 2, 1, 0]], torch.tensor([5.0, 5.0, 5.0, 5.0, 5.0, 6.0])
    chosen, entries = distinct(latents, t)
    assert chosen.tolist() == [0, 1, 3, 5] and entries.tolist() == [0, 1, 0, 2, 1, 3]
    assert [len(part) for part in distinct(latents[:1], t[:1])] == [1, 1]


def test_latents_that_only_begin_alike_are_not_the_same():
    latents = torch.zeros(3, 4, 8, 8)
    latents[2, -1, -1, -1] = 1
    assert latents[0].numel() > PROBE
    chosen, entries = distinct(latents, torch.zeros(3))
    assert chosen.tolist() == entries.tolist() == [0, 1, 2]


def test_the_first_weight_tells_what_diffusers_tells():
    network = unet().to(torch.bfloat16)
    weight = first_weight(network)
    assert (weight.dtype, weight.device) == (network.dtype, network.device) == (torch.bfloat16, torch.device("cpu"))
    with pytest.raises(ValueError, match="Identity has no weights"):
        first_weight(torch.nn.Identity())
