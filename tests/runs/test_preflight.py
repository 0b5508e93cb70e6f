"""A model's files, the length of prompts and the weighting are checked before torch is imported."""

import json
import shutil
import subprocess
import sys

import pytest

from nfsd3d.config.compose import compose
from nfsd3d.errors import InputError
from nfsd3d.runs import preflight

SETTLED = ["machine=cpu", "backend=torch", "prior=sd15"]


@pytest.fixture
def model(model_folder, tmp_path):
    """A copy of a small model that reads prompts of 12 tokens."""
    return shutil.copytree(model_folder("kl"), tmp_path / "model")


def check(model, *overrides, experiment="nfsd", prompt="a red cube"):
    given = [f"prompt={prompt}", "negative_prompt=dull", f"prior.model={model}", *SETTLED, *overrides]
    return preflight.check(compose(experiment, given))


def test_a_fitting_model_and_prompts_pass(model):
    assert check(model).folder == model
    assert check(model, prompt=" ".join(["red"] * 9)).folder == model  # and 3 of ", overhead view"


@pytest.mark.parametrize(
    ("experiment", "prompt", "overrides", "message"),
    [
        ("nfsd", "red " * 9 + "red", (), r"prompt='red .*' is 13 tokens long, 3 of these are view words, and the prior"
         r" reads 12: shorten it, or set prompts\.view_dependent=false"),
        ("nfsd", "red " * 12 + "red", ("prompts.view_dependent=false",), "prompt='red .*' is 13 tokens long and the"),
        ("nfsd", "a red cube", ("negative_prompt=" + "red " * 13,), r"negative_prompt='red .* is 13 tokens long and"),
        ("bridge", "red " * 6, ("distill.better_suffix=' red red red red'", "distill.worse_suffix=''"),
         r"distill\.better_suffix=' red .*' is 13 tokens long, 3 of these are view words and 6 of the prompt, and"),
        ("dds", "red", ("source_prompt=" + "red " * 13, "source_run=x"), r"source_prompt='red .* is 1\d tokens"),
    ],
)  # fmt: skip
def test_a_long_prompt_is_an_error_of_its_setting(model, experiment, prompt, overrides, message):
    with pytest.raises(InputError, match=rf"^{message}"):
        check(model, *overrides, experiment=experiment, prompt=prompt)


def test_a_prompt_of_nine_words_fits_without_view_words(model):
    check(model, "prompts.view_dependent=false", prompt=" ".join(["red"] * 12))


def configure(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("range_", [("train.t_min=0.999", "train.t_max=1.0"), ("train.t_max=[[0.0,0.5],[1.0,1.0]]",)])
def test_an_infinite_weighting_is_refused(model, range_):
    weighting = "distill.weighting=sigma_over_alpha"
    check(model, weighting, *range_)
    configure(model / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True, prediction_type="v_prediction")
    check(model, weighting)
    check(model, *range_)
    message = r"^distill\.weighting=sigma_over_alpha: is infinite at timestep 999, .*; set train\.t_max below 0\.999"
    with pytest.raises(InputError, match=message):
        check(model, weighting, *range_)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "EDMEulerScheduler"},
            "an EDM model",
        ),
        ("unet/config.json", {"sample_size": [8, 16]}, "square latents are needed"),
        ("unet/config.json", {"cross_attention_dim": 24}, "attends to width 24 and the text encoder has 16"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "is a Stable Diffusion XL model"),
        ("vae/config.json", {"latent_channels": 16}, "takes 4 channels and the autoencoder has 16"),
        ("text_encoder/config.json", {"vocab_size": 7}, "its vocabulary was not read"),
    ],
)
def test_parts_that_do_not_fit_are_refused(model, part, changes, message):
    configure(model / part, **changes)
    with pytest.raises(InputError, match=rf"^prior\.model.*{message}"):
        check(model)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", bytes(40)])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_damaged_weights_are_named(model, part, content):
    (path,) = (model / part).glob("*.safetensors")
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^prior\.model: .*{part}/.*safetensors: (is a Git|cannot be read as safe)"):
        check(model)


def test_errors_come_before_torch_and_leave_no_folder(model, tmp_path):
    code = """
import sys
from nfsd3d.cli.main import main
code = main(sys.argv[1:])
sys.exit(99 if {"torch", "transformers", "diffusers"} & set(sys.modules) else code)
"""
    arguments = ["--config", "nfsd_2d", *SETTLED, f"prior.model={model}", "prompt=a red cube"]
    arguments += ["negative_prompt=" + "red " * 13, f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: negative_prompt='red red") and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
