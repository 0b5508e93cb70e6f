"""Placement and host-device synchronisation of a training step, on a fake GPU."""

import copy
from dataclasses import replace

import pytest
import torch
from fake_gpu import fake_gpu
from small_settings import CAMERAS, DISTILL, PROMPTS

from nfsd3d.distill.gradient import inject_gradient, predict_noise
from nfsd3d.distill.methods import METHODS
from nfsd3d.prior.architectures import random_prior
from nfsd3d.prior.files.locate import EMBEDDED
from nfsd3d.prior.load_prior import load_prior
from nfsd3d.prior.lora import LoraNetwork
from nfsd3d.train.build import build_generator, build_optimizer, build_parts
from nfsd3d.train.divergence import drop_unless_finite
from nfsd3d.train.memory.chunking import ChunkSizes
from nfsd3d.train.plan import plan_at
from nfsd3d.train.step import Distillation, step_loss
from nfsd3d.views.cameras import orbit
from nfsd3d.views.prompts import PromptBank

ON_CUDA = {"machine.name": "cuda", "machine.device": "cuda", "machine.precision": "float32"}
COUNTING = "(side stream) aten._local_scalar_dense: generators/nerf/sampling/sampling.py"
"""Where the number of samples is read: on a side stream, which does not wait for the previous step."""


def syncs_of_a_step(configure, narrow, name, *, chunks=None, perp_neg=False, fine=False, **changes):
    """The host-device synchronisations of a method's second step on a scene (the first moves constants to the GPU)."""
    method = METHODS[name]
    config = configure(**ON_CUDA, **{"train.t_min": 0.02, "train.t_max": 0.98, **changes})
    rng = torch.Generator().manual_seed(0)
    with fake_gpu() as gpu:
        prior = random_prior(narrow, "cuda", image_size=64)
        words = replace(PROMPTS, perp_neg=perp_neg, views="fine" if fine else "coarse")
        needed = {"needed": method.all_prompts, "source_prompt": "a blue cube"}
        bank = PromptBank.build(prior, "a red cube", "dull", words, **needed)
        lora = LoraNetwork(prior, rank=2, learning_rate=1e-3, camera_dropout=0.1, seed=0) if name == "vsd" else None
        distillation = Distillation(method, DISTILL, 200, lora)
        generator = build_generator(config)
        source = copy.deepcopy(generator).requires_grad_(False) if method.needs_source else None
        optimizer = build_optimizer(generator, config.train)
        plan = replace(plan_at(config.train, 0.7), chunks=chunks or ChunkSizes())
        generator.update(0, rng)
        for _ in range(2):
            gpu.syncs.clear()
            result = step_loss(generator, prior, bank, distillation, CAMERAS, plan, rng, source)
            result.loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(list(generator.parameters()), 1.0)
            drop_unless_finite([optimizer], norm)
            optimizer.step()
            syncs = list(gpu.syncs)
            gradients = [parameter.grad for parameter in generator.field.parameters()]
            assert all(gradient.is_cuda and gradient.abs().max() > 0 for gradient in gradients)
            optimizer.zero_grad(set_to_none=True)
        assert all(metric.is_cuda for metric in result.metrics.tensors().values())
        assert gpu.errors == []
    return syncs


@pytest.mark.parametrize(("perp_neg", "fine"), [(False, False), (True, True)])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_steps_of_every_method_synchronise_only_on_the_side_stream(configure, narrow, name, perp_neg, fine):
    """The samplers' reference implementation also reads more than the number of samples there."""
    syncs = syncs_of_a_step(configure, narrow, name, perp_neg=perp_neg, fine=fine)
    assert syncs and all(sync.startswith("(side stream)") and "sampling/sampling.py" in sync for sync in syncs)


@pytest.mark.usefixtures("triton_interpreter")
@pytest.mark.parametrize("chunks", [None, ChunkSizes(100, 1, True)])
def test_triton_reads_only_the_number_of_samples(configure, narrow, chunks):
    kernels = {"backend.field": "triton", "backend.sampler": "triton"}
    syncs = syncs_of_a_step(configure, narrow, "nfsd", chunks=chunks, **kernels)
    assert syncs[0].startswith(COUNTING)
    # With chunks also the index at which each of them ends.
    assert len(syncs) == (1 if chunks is None else 2) and all("tolist()" in sync for sync in syncs[1:])


@pytest.mark.parametrize(
    "changes",
    [
        {"train.shading": {"lambertian": 1.0, "textureless": 0.5, "ambient": 0.3}},
        {"train.regularizers.orient": 0.01, "generator.normals": "finite_difference"},
    ],
)
def test_normals_synchronise_for_the_number_of_visible_samples(configure, narrow, changes):
    syncs = syncs_of_a_step(configure, narrow, "nfsd", **changes)
    (own,) = (sync for sync in syncs if not sync.startswith("(side stream)"))
    assert "nonzero" in own and "nerf/nerf.py" in own


@pytest.mark.usefixtures("triton_interpreter")
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_pruning_synchronises_for_the_number_of_remaining_samples(configure, narrow, backend):
    """It depends on the current weights, which the previous step may still be writing."""
    kernels = {"backend.field": backend, "backend.sampler": backend}
    syncs = syncs_of_a_step(configure, narrow, "nfsd", **kernels, **{"generator.prune_alpha": 0.01})
    (own,) = (sync for sync in syncs if not sync.startswith("(side stream)"))
    assert "nonzero" in own and "sampling/sampling.py" in own


def test_the_occupancy_grid_synchronises_only_on_the_side_stream(configure):
    """The occupied cells are counted on the side stream; the next view syncs for the update on the GPU."""
    config = configure(**ON_CUDA)
    with fake_gpu() as gpu:
        generator, rng = build_generator(config), torch.Generator().manual_seed(0)
        cameras = orbit(1, 8)
        generator.update(0, rng)
        generator.render(cameras, rng)
        gpu.syncs.clear()
        generator.update(6, rng)
        assert gpu.syncs and all(sync.startswith("(side stream)") for sync in gpu.syncs)
        generator.render(cameras, rng)
        assert gpu.errors == []


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_half_precision_networks_leave_float32_where_it_matters(configure, precision):
    """Latents, predictions, direction and gradient are float32; only the networks compute in half precision."""
    prior = load_prior(EMBEDDED, dtype=precision)
    assert {tensor.dtype for tensor in prior.tensors() if tensor.is_floating_point()} == {precision}
    parts = build_parts(configure(), prior)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    z = prior.encode(image)
    t, noise = torch.tensor([100, 700]), torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    contexts = parts.bank.contexts(orbit(2, 8))
    z_t = prior.schedule.add_noise(z.detach(), noise, t)
    p = predict_noise(prior, z_t, t, contexts, METHODS["nfsd"], noise=noise, threshold=200)
    direction = METHODS["nfsd"].function(p, 7.5)
    assert {x.dtype for x in (z, z_t, p.cond, p.uncond, p.neg, direction, contexts["cond"].tensors["embeddings"])} == {
        torch.float32
    }
    # A direction too small to be added to the latent in half precision still reaches the image.
    loss = inject_gradient(z, torch.full_like(z, 1e-4) * direction.sign())
    assert loss.dtype == torch.float32
    loss.backward()
    assert image.grad.dtype == torch.float32 and image.grad.abs().max() > 0
