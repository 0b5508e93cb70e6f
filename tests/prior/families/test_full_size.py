"""The families' networks at full size, on the meta device."""

import pytest
import torch

from nfsd3d.config.compose import compose
from nfsd3d.errors import InputError
from nfsd3d.prior.families.full_size import FULL_SIZES, full_size_prior
from nfsd3d.prior.families.table import PRESETS
from nfsd3d.train.memory.budget import GIB, predicted

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in version 1.0.0:FutureWarning")

PUBLISHED = {
    "sdxl": 2.6,  # 2307.01952, table 1
    "sd3": 2.0,  # 2403.03206: "medium", two billion
    "sd35": 2.5,  # model card of Stable Diffusion 3.5 Medium
    "sana": 1.6,  # 2410.10629
    "pixart": 0.6,  # 2403.04692
    "auraflow": 6.8,  # model card
    "lumina2": 2.6,  # 2503.21758
    "zimage": 6.0,  # 2511.22699
    "cogview4": 6.0,  # its name on the hub, CogView4-6B
    "kolors": 2.6,  # the UNet of Stable Diffusion XL
    "chroma": 8.9,  # model card
}
"""Parameters of the denoiser in 10⁹, as the authors round them."""


def test_every_preset_has_a_size():
    assert FULL_SIZES.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_denoiser_has_as_many_parameters_as_its_authors_say(name):
    prior = full_size_prior(name, 512)
    count = sum(value.numel() for value in prior.denoiser.state_dict().values()) / 1e9
    assert count == pytest.approx(PUBLISHED[name], rel=0.07)


@pytest.mark.parametrize("name", ["sdxl", "sana", "chroma"])
def test_a_dry_run_predicts_the_memory_of_a_family(name):
    config = compose("nfsd", ["prompt=a corgi", f"prior={name}", "machine.precision=bfloat16"])
    text = predicted(config)
    weights = sum(
        value.nbytes
        for network in full_size_prior(name, config.prior.image_size, torch.bfloat16).networks
        for value in network.state_dict().values()
    )
    assert f"the prior's weights {weights / GIB:.2f}," in text
    assert float(text.split(" GB")[0]) > weights / GIB


def test_what_cannot_be_predicted_is_not():
    for settings in (["prior=zimage"], ["prior=sd3", "prior.model=x/y"]):
        assert predicted(compose("nfsd", ["prompt=a corgi", *settings])) is None


def test_no_image_size_is_one_line_where_a_model_has_none():
    with pytest.raises(InputError, match=r"^prior\.image_size=null: a Chroma model does not say its own size"):
        predicted(compose("nfsd", ["prompt=a corgi", "prior=chroma", "prior.image_size=null"]))


def test_smaller_images_take_less_memory():
    def total(size):
        settings = [f"prior.image_size={size}", "prior=sd21", "train.resolution=64"]
        return float(predicted(compose("nfsd", ["prompt=a corgi", *settings])).split(" GB")[0])

    assert total(256) < total(512) == total("null")


def test_a_prior_without_text_encoders_says_so():
    with pytest.raises(InputError, match="no text encoders"):
        full_size_prior("pixart", 512).embed(["a corgi"])
