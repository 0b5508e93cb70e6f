"""A model with a damaged configuration, or parts that do not fit, is refused before torch is imported."""

import json
import shutil

import pytest

from nfsd3d.errors import InputError
from nfsd3d.prior.files.check_model import check_files
from nfsd3d.prior.files.folder import ModelFiles


@pytest.fixture
def model(model_folder, tmp_path):
    """A copy of a small model."""
    return shutil.copytree(model_folder("kl"), tmp_path / "model")


def configure(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_intact_model_gives_its_schedule_and_its_tokenizer(model):
    training, tokens = check_files(ModelFiles(model))
    assert (training.steps, training.prediction_type) == (1000, "epsilon")
    assert (tokens.length, tokens.count("a red cube")) == (12, 3)


NUMBERS = {
    "unet": ("sample_size", "in_channels", "block_out_channels", "layers_per_block", "attention_head_dim"),
    "vae": ("latent_channels", "block_out_channels", "norm_num_groups"),
    "text_encoder": ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
}


@pytest.mark.parametrize("value", ["4", 0, -1, 10**9, 10**30, 1.5, float("nan"), True, {"a": 1}, [4, "a"], []])
@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in NUMBERS.items() for name in names])
def test_a_size_that_is_not_a_plausible_number_is_refused(model, part, name, value):
    configure(model / part / "config.json", **{name: value})
    with pytest.raises(InputError, match=rf"^prior\.model[^\n]*{name}[^\n]*; (replace|square)"):
        check_files(ModelFiles(model))


@pytest.mark.parametrize(
    ("part", "name", "values"),
    [
        ("vae", "scaling_factor", ("0.18", 0, -1, 10**30, float("nan"), float("inf"), None, [1], True)),
        ("vae", "shift_factor", ("0", 10**30, float("nan"), float("inf"), [1], True)),
        ("text_encoder", "eos_token_id", ("1", [1], None, 1.5)),
    ],
)
def test_a_number_that_would_spoil_the_latents_or_the_text_is_refused(model, part, name, values):
    for value in values:
        configure(model / part / "config.json", **{name: value})
        with pytest.raises(
            InputError, match=rf"^prior\.model: the .*'s {name}=.* is not a .*; replace its config\.json"
        ):
            check_files(ModelFiles(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 16}, "channels 16 instead of 4"),
        ({"scaling_factor": 0.13}, r"scaling_factor 0\.13 instead of 0\.18215"),
        ({"scaling_factor": "0.18215"}, r"scaling_factor '0\.18215' instead of 0\.18215"),
        ({"block_out_channels": [8, 8]}, "pixels per latent and axis 2 instead of 4"),
    ],
)
def test_an_autoencoder_of_other_latents_is_refused(model, tmp_path, changes, message):
    other = shutil.copytree(model / "vae", tmp_path / "other")
    check_files(ModelFiles(model, None, other))
    configure(other / "config.json", **changes)
    with pytest.raises(InputError, match=rf"^prior\.vae: .*other has {message}, so its latents are not those of"):
        check_files(ModelFiles(model, None, other))


def test_only_the_weights_that_are_loaded_are_checked(model):
    (model / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"junk")
    (model / "unet/old.safetensors").write_bytes(b"junk")
    check_files(ModelFiles(model))
    (model / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"^prior\.model: .*fp16\.safetensors: cannot be read as safetensors"):
        check_files(ModelFiles(model))
