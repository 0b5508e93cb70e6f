"""Weights of whole numbers, and scaled ones, are refused."""

import pytest
import torch
from safetensors.torch import save_file

from nfsd3d.errors import InputError
from nfsd3d.prior.files.check_model import check_files
from nfsd3d.prior.files.configs_and_headers import check_not_quantised
from nfsd3d.prior.files.folder import ModelFiles


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_floating_point_weights_are_read(tmp_path, kind):
    save_file({"a.weight": torch.ones(2).to(kind), "position_ids": torch.arange(3)}, tmp_path / "x.safetensors")
    check_not_quantised(tmp_path / "x.safetensors", "prior.model")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.weight", torch.int8),
        ("a.weight", torch.uint8),
        ("a.weight_scale", torch.float32),
        ("a.scale_weight", torch.float32),
    ],
)
def test_others_are_refused(tmp_path, name, kind):
    save_file({"a.bias": torch.ones(2), name: torch.ones(2).to(kind)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=rf"^prior\.model=x: is quantised \({name} .*give it in float16, bfloat16"):
        check_not_quantised(tmp_path / "x.safetensors", "prior.model=x")


def test_an_image_size_between_latents_of_stable_diffusion_is_refused(model_folder):
    folder = model_folder("kl")
    files = ModelFiles(folder)
    with pytest.raises(InputError, match=r"^prior\.image_size=66: must be a multiple of \d+ for this model; set 64$"):
        check_files(files, 66)
    check_files(files, 64)
