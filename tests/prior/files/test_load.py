"""Weights from other places and with other names give the same model; weights that do not fit are named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from nfsd3d.errors import InputError
from nfsd3d.prior.files.convert_single_file import load_vae
from nfsd3d.prior.files.download import fetch
from nfsd3d.prior.files.folder import ModelFiles
from nfsd3d.prior.files.locate import locate
from nfsd3d.prior.load_prior import load_prior

IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def layout(model_folder, tmp_path):
    """The configurations and the tokenizer of the model "kl"."""
    return shutil.copytree(model_folder("kl"), tmp_path / "layout", ignore=shutil.ignore_patterns("*.safetensors"))


def rewrite(source, target, change):
    """Saves the tensors of ``source`` with names changed: None leaves one out."""
    tensors = {change(name): tensor for name, tensor in load_file(source).items()}
    save_file({name: tensor for name, tensor in tensors.items() if name is not None}, target, {"format": "pt"})
    return target


def other_vae(folder):
    """The same autoencoder with other weights."""
    shutil.copytree(folder, folder.parent / "other")
    path = folder.parent / "other" / VAE
    save_file({name: tensor * 0.9 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    return path


def test_weights_in_several_files_and_in_variants_are_read(model_folder, tmp_path):
    from diffusers import UNet2DConditionModel

    original = model_folder("kl")
    model = shutil.copytree(original, tmp_path / "model")
    unet = UNet2DConditionModel.from_pretrained(original / "unet")
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(model / "unet", variant="non_ema", max_shard_size="100KB")
    (model / VAE).rename(model / VAE.replace(".safetensors", ".bf16.safetensors"))
    assert len(list((model / "unet").glob("*.non_ema-*-of-*.safetensors"))) > 1
    prior, expected = load_prior(model), load_prior(original)
    assert all(map(torch.equal, prior.tensors(), expected.tensors()))
    lost = sorted((model / "unet").glob("*-of-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(InputError, match=rf"^prior\.model: .*unet lacks {lost.name}, which .*\.json names"):
        load_prior(model)


@pytest.mark.parametrize("names", ["diffusers", "former diffusers", "original", "original, with prefix"])
def test_an_autoencoder_in_one_file_is_the_one_in_a_folder(model_folder, tmp_path, no_hub_cache, names):
    from tests.tiny_models import write_single_file

    model = shutil.copytree(model_folder("kl"), tmp_path / "model")
    changed = other_vae(model)
    file = tmp_path / "vae-ft-mse.safetensors"
    if names == "diffusers":
        shutil.copy(changed, file)
    elif names == "former diffusers":
        former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

        def renamed(name):
            for new, old in former.items():
                name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
            return name

        rewrite(changed, file, renamed)
    else:
        shutil.copy(changed, model / VAE)
        single = write_single_file(model, tmp_path / "single.safetensors")
        shutil.copy(model_folder("kl") / VAE, model / VAE)
        strip = "first_stage_model." if names == "original" else ""
        rewrite(single, file, lambda name: name.removeprefix(strip) if name.startswith("first_stage") else None)
    files = fetch(locate("shapes", str(model), vae=str(file)))
    assert files.vae == file and file in files.weights() and model / VAE not in files.weights()
    found = load_vae(files.vae, model, torch.float32, "prior.vae").state_dict()
    expected = {name: tensor.float() for name, tensor in load_file(changed).items()}
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_a_prior_encodes_with_the_autoencoder_in_a_file(model_folder, tmp_path):
    changed = other_vae(shutil.copytree(model_folder("kl"), tmp_path / "model"))
    prior = load_prior(ModelFiles(model_folder("kl"), None, changed))
    assert torch.equal(prior.encode(IMAGE), load_prior(changed.parents[1]).encode(IMAGE))
    assert not torch.equal(prior.encode(IMAGE), load_prior(model_folder("kl")).encode(IMAGE))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_checkpoint_without_autoencoder_takes_another(model_folder, single_file, layout, tmp_path, kind):
    lean = rewrite(single_file, tmp_path / "lean.safetensors", lambda n: None if n.startswith("first_stage") else n)
    with pytest.raises(InputError, match=r"holds no vae .*; give an autoencoder as prior\.vae=FILE or FOLDER"):
        locate("shapes", str(lean), layout=str(layout))
    vae = model_folder("kl") / VAE if kind == "file" else model_folder("kl") / "vae"
    prior = load_prior(fetch(locate("shapes", str(lean), layout=str(layout), vae=str(vae))))
    assert torch.equal(prior.encode(IMAGE), load_prior(model_folder("kl")).encode(IMAGE))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text_encoder/model.safetensors", "is a text encoder alone"),
        ("unet/diffusion_pytorch_model.safetensors", "holds no autoencoder"),
    ],
)
def test_a_file_of_another_part_is_no_autoencoder(model_folder, name, message):
    with pytest.raises(InputError, match=rf"^prior\.vae=.*: {message}"):
        locate("shapes", vae=str(model_folder("kl") / name))


def test_an_autoencoder_file_needs_a_configuration_of_its_kind(model_folder):
    files = ModelFiles(model_folder("tiny"), None, model_folder("kl") / VAE)
    with pytest.raises(InputError, match=r"^prior\.vae: .*is of an AutoencoderTiny; give a folder with config\.json"):
        load_prior(files)


def test_text_encoders_without_the_level_text_model_are_read(model_folder, single_file, layout, tmp_path):
    flat = rewrite(single_file, tmp_path / "flat.safetensors", lambda name: name.replace(".text_model.", "."))
    prior = load_prior(fetch(locate("shapes", str(flat), layout=str(layout))))
    expected = load_prior(model_folder("kl"))
    assert torch.equal(*(each.embed(["a red cube"]).tensors["embeddings"] for each in (prior, expected)))


def without(first):
    return lambda name: None if name == first else name


@pytest.mark.parametrize(
    ("missing", "network", "present"),
    [
        ("model.diffusion_model.out.2.bias", "UNet2DConditionModel", r"conv_out\.bias"),
        ("first_stage_model.encoder.conv_in.bias", "AutoencoderKL", r"encoder\.conv_in\.bias"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "CLIPTextModel", r"final_layer_norm\.bias"),
    ],
)
def test_a_tensor_missing_in_a_single_file_is_named(single_file, layout, tmp_path, missing, network, present):
    less = rewrite(single_file, tmp_path / "less.safetensors", without(missing))
    message = rf"^prior\.model: .*less\.safetensors lacks weights of {network} \(first: {present}\); replace"
    with pytest.raises(InputError, match=message):
        load_prior(ModelFiles(layout, less))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_of_a_folder_that_do_not_fit_are_named_before_they_are_read(model_folder, tmp_path, part, monkeypatch):
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    def read(*args, **kwargs):
        raise AssertionError("weights were read")

    model = shutil.copytree(model_folder("kl"), tmp_path / "model")
    (path,) = (model / part).glob("*.safetensors")
    tensors = load_file(path)
    first = sorted(tensors)[0]
    for owner in (ModelMixin, PreTrainedModel):
        original = owner.from_pretrained.__func__

        def selective(cls, folder, *args, _original=original, **kwargs):
            return read() if str(folder).endswith(f"/{part}") else _original(cls, folder, *args, **kwargs)

        monkeypatch.setattr(owner, "from_pretrained", classmethod(selective))
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, path, {"format": "pt"})
    with pytest.raises(InputError, match=rf"^prior\.model: .*/{part} lacks weights of \w+ \(first: "):
        load_prior(model)
    save_file(tensors | {first: torch.zeros(3, 5)}, path, {"format": "pt"})
    with pytest.raises(InputError, match=rf"/{part} has weights of another \w+ than .* of shape \[3, 5\] instead"):
        load_prior(model)
    if part != "text_encoder":
        save_file(tensors | {"class_embedding.weight": torch.zeros(3, 5)}, path, {"format": "pt"})
        with pytest.raises(InputError, match=rf"/{part} holds weights that its config\.json does not describe"):
            load_prior(model)


@pytest.mark.parametrize(
    "config",
    [
        {"class_embed_type": "timestep"},
        {"num_class_embeds": 7},
        {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16},
        {"time_cond_proj_dim": 8},
    ],
)
def test_a_unet_with_a_condition_that_is_not_given_is_refused(model_folder, tmp_path, config):
    model = shutil.copytree(model_folder(), tmp_path / "model")
    path = model / "unet/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(InputError, match=rf"prior\.model=.*: is .*{next(iter(config))}"):
        locate("shapes", str(model))
    from diffusers import UNet2DConditionModel

    UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(model / "unet")).save_pretrained(model / "unet")
    with pytest.raises(InputError, match=rf"^prior\.model: is .*{next(iter(config))}"):
        load_prior(model)
