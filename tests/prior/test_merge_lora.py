"""LoRAs in the layouts of diffusers, kohya and peft: merged as diffusers and peft merge them, checked before."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_families import PIPELINES, pipeline_of, save

from nfsd3d.errors import InputError
from nfsd3d.prior.families.table import FAMILIES
from nfsd3d.prior.files.check_model import check_files
from nfsd3d.prior.files.folder import LoraFile, ModelFiles
from nfsd3d.prior.files.locate import EMBEDDED
from nfsd3d.prior.files.lora_files import locate_loras
from nfsd3d.prior.load_prior import load_family_prior, load_prior
from nfsd3d.prior.merge_lora import merge_loras

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in version 1.0.0:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]


def adapter(network, targets, seed=0, **settings):
    """The tensors of a random adapter of a network, in peft's names, and its settings; the network keeps it."""
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 4, "lora_alpha": 2, "init_lora_weights": False, **settings}, target_modules=targets)
    inject_adapter_in_model(config, network, adapter_name="default")
    network.peft_config = {"default": config}
    tensors = {name: value.clone() for name, value in get_peft_model_state_dict(network).items()}
    return tensors, config


def merged(network):
    """The weights of a network with an adapter, as peft merges them, by the names of the bare network."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.merge()
    values = network.state_dict().items()
    return {name.replace(".base_layer", ""): value.clone() for name, value in values if ".lora_" not in name}


def stable_diffusion(folder):
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    return {
        "unet": UNet2DConditionModel.from_pretrained(folder / "unet"),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
    }


def in_kohyas_names(tensors, prefix, alpha):
    """peft's tensors in the names of kohya's scripts; alpha for each module by a function of its name."""
    named = {}
    for name, value in tensors.items():
        module, end = name.split(".lora_")
        # The level text_model is in all of kohya's names, but not in all classes of today's transformers.
        place = prefix + module.removeprefix("text_model.").replace(".", "_")
        named[f"{place}.lora_{'down' if end[0] == 'A' else 'up'}.weight"] = value
        named[f"{place}.alpha"] = torch.tensor(float(alpha(module)))
    return named


def assert_same(network, expected):
    got = network.state_dict()
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert torch.allclose(got[name], value, atol=1e-6, rtol=1e-5), name


@pytest.mark.parametrize("layout", ["diffusers", "peft names", "kohya"])
def test_a_lora_of_stable_diffusion_is_merged_with_its_text_encoder(model_folder, tmp_path, layout):
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from diffusers.utils import convert_state_dict_to_diffusers

    folder = model_folder("tiny")
    adapted, networks = stable_diffusion(folder), stable_diffusion(folder)
    before = {part: {n: v.clone() for n, v in network.state_dict().items()} for part, network in networks.items()}
    # Convolutions too: diffusers 0.42.1 writes them in other names than attention, and reads back the first kind only.
    patterns = {"alpha_pattern": {"conv1": 1.0}} if layout == "kohya" else {}
    unet, _ = adapter(adapted["unet"], [*ATTENTION, "conv1"], **patterns)
    text, _ = adapter(adapted["text_encoder"], TEXT, seed=1)
    if layout == "kohya":
        tensors = in_kohyas_names(unet, "lora_unet_", lambda module: 1 if module.endswith("conv1") else 2)
        save_file(
            tensors | in_kohyas_names(text, "lora_te_text_model_", lambda module: 2), tmp_path / "lora.safetensors"
        )
        path = tmp_path / "lora.safetensors"
    else:
        if layout == "diffusers":
            unet, text = convert_state_dict_to_diffusers(unet), convert_state_dict_to_diffusers(text)
        StableDiffusionPipeline.save_lora_weights(tmp_path, unet, text, **_collate_lora_metadata(adapted))
        (path,) = tmp_path.glob("*.safetensors")
    merge_loras(locate_loras(str(path)), "StableDiffusionPipeline", networks, unet_config=networks["unet"].config)
    for part, network in networks.items():
        assert_same(network, merged(adapted[part]))
        assert any(not torch.equal(value, before[part][name]) for name, value in network.state_dict().items())


def test_weights_scale_the_change_and_several_add_up(model_folder, tmp_path):
    folder = model_folder("tiny")
    paths, changes = [], []
    for seed in (0, 1):
        network = stable_diffusion(folder)["unet"]
        before = {name: value.clone() for name, value in network.state_dict().items()}
        tensors, _ = adapter(network, ATTENTION, seed)
        named = {f"unet.{name}": value for name, value in tensors.items()}
        paths.append(tmp_path / f"{seed}.safetensors")
        save_file(named, paths[-1])  # without settings alpha is the rank, twice that of the adapter
        changes.append({name: 2 * (value - before[name]) for name, value in merged(network).items()})
    plain, both = load_prior(folder), ModelFiles(folder, loras=locate_loras([f"{paths[0]}:0.8", f"{paths[1]}:-.5"]))
    prior = load_prior(both)
    expected = {name: value + 0.8 * changes[0][name] - 0.5 * changes[1][name] for name, value in before.items()}
    assert_same(prior.denoiser, expected)
    none = load_prior(ModelFiles(folder, loras=locate_loras(f"{paths[0]}:0")))
    assert_same(none.denoiser, plain.denoiser.state_dict())
    z, t = torch.randn(2, *plain.latent_shape), torch.tensor([10, 700])
    context = plain.embed(["a red cube"]).expand(2)
    assert torch.equal(none.predict_eps(z, t, context), plain.predict_eps(z, t, context))
    assert not torch.equal(prior.predict_eps(z, t, context), plain.predict_eps(z, t, context))


def test_vsd_adapts_the_merged_model(model_folder, tmp_path):
    from nfsd3d.prior.lora import LoraNetwork

    folder = model_folder("tiny")
    tensors, _ = adapter(stable_diffusion(folder)["unet"], ATTENTION)
    save_file({f"unet.{name}": value for name, value in tensors.items()}, tmp_path / "lora.safetensors")
    prior = load_prior(ModelFiles(folder, loras=locate_loras(str(tmp_path / "lora.safetensors"))))
    z, t = torch.randn(2, *prior.latent_shape), torch.tensor([10, 700])
    context = prior.embed(["a red cube"]).expand(2)
    before = prior.predict_eps(z, t, context)
    lora = LoraNetwork(prior, rank=4, learning_rate=1e-2, camera_dropout=0.1, seed=0)
    from nfsd3d.views.cameras import orbit

    torch.testing.assert_close(lora.at(orbit(2, 8)).predict_eps(z, t, context), before)
    lora.learn(z, context, orbit(2, 8), torch.Generator().manual_seed(0))
    assert torch.equal(prior.predict_eps(z, t, context), before)
    assert not torch.equal(lora.at(orbit(2, 8)).predict_eps(z, t, context), before)


def save_lora(name, layout, pipeline, folder):
    """A random LoRA of a small pipeline's attention, and of its first text encoder where that is CLIP's."""
    from diffusers.training_utils import _collate_lora_metadata

    family = FAMILIES[name]
    denoiser = getattr(pipeline, family.denoiser)
    linear = [module for module, kind in denoiser.named_modules() if isinstance(kind, torch.nn.Linear)]
    tensors, _ = adapter(denoiser, [module for module in linear if ".att" in module])
    text = adapter(pipeline.text_encoder, TEXT, seed=1)[0] if name in ("sdxl", "sd3") else {}
    path = folder / "adapter_model.safetensors"
    if layout == "kohya":
        named = in_kohyas_names(tensors, "lora_unet_", lambda module: 2)
        save_file(named | in_kohyas_names(text, "lora_te1_text_model_", lambda module: 2), path)
    elif name in ("pixart", "prx"):  # diffusers writes no LoRAs of these, peft does
        save_file({f"base_model.model.{key}": value for key, value in tensors.items()}, path)
        (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2, "r": 4}))
    else:
        layers, parts = {f"{family.denoiser}_lora_layers": tensors}, {family.denoiser: denoiser}
        if text:
            layers["text_encoder_lora_layers"], parts["text_encoder"] = text, pipeline.text_encoder
        type(pipeline).save_lora_weights(folder, **layers, **_collate_lora_metadata(parts))
        (path,) = folder.glob("*.safetensors")
    return path, bool(text)


@pytest.mark.parametrize("layout", ["diffusers or peft", "kohya"])
@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_a_lora_of_each_family_is_merged(name, layout, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    adapted = pipeline_of(name)
    path, with_text = save_lora(name, layout, adapted, tmp_path)
    save(name, tmp_path / "model")
    files = ModelFiles(tmp_path / "model", family=name, loras=locate_loras(str(path)))
    size = 16 * 8 * (4 if name == "sana" else 1)
    check_files(files, size)
    prior = load_family_prior(files, "cpu", torch.float32, image_size=size)
    plain = load_family_prior(dataclasses.replace(files, loras=()), "cpu", torch.float32, image_size=size)
    words, same = prior.embed(["a red cube"]).tensors, plain.embed(["a red cube"]).tensors
    assert any(not torch.equal(words[key], same[key]) for key in words) == with_text
    if with_text:
        assert_same(prior._text_encoders._pipeline.text_encoder, merged(adapted.text_encoder))
    assert_same(prior.denoiser, merged(getattr(adapted, FAMILIES[name].denoiser)))
    pairs = zip(prior.denoiser.state_dict().values(), plain.denoiser.state_dict().values(), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)
    assert not [text for text in caplog.messages if "prior.lora" in text]


def test_what_fits_nothing_is_told(model_folder, tmp_path, caplog):
    folder = model_folder("tiny")
    tensors, _ = adapter(stable_diffusion(folder)["unet"], ATTENTION)
    named = {f"unet.{name}": value for name, value in tensors.items()}
    extra = {"unet.mid_block.attentions.7.to_q.lora_A.weight": torch.zeros(4, 8)}
    path = tmp_path / "lora.safetensors"
    save_file(named | extra | {"control.to_q.lora_A.weight": torch.zeros(4, 8)}, path)
    load_prior(ModelFiles(folder, loras=locate_loras(str(path))))
    (told,) = caplog.messages
    assert f"prior.lora={path}: 2 of its {len(named) + 2} tensors fit nothing" in told
    save_file(extra, path)
    with pytest.raises(InputError, match=r"prior\.lora=.*fits nothing in this model .*attentions\.7"):
        load_prior(ModelFiles(folder, loras=locate_loras(str(path))))


@pytest.mark.parametrize("kohya", [False, True])
def test_a_lora_of_another_width_is_refused_before_anything_is_loaded(model_folder, tmp_path, kohya):
    folder = model_folder("tiny")
    tensors, _ = adapter(stable_diffusion(folder)["unet"], ATTENTION)
    wider = {name: value if "lora_B" in name else torch.zeros(4, value.shape[1] + 8) for name, value in tensors.items()}
    named = {f"unet.{name}": value for name, value in wider.items()}
    path = tmp_path / "lora.safetensors"
    save_file(in_kohyas_names(wider, "lora_unet_", lambda module: 2) if kohya else named, path)
    files = ModelFiles(folder, loras=locate_loras(str(path)))
    with pytest.raises(InputError, match=r"prior\.lora=.*made for another model: its tensor .* has \d+ inputs, where"):
        check_files(files)
    with pytest.raises(InputError, match=r"prior\.lora="):
        load_prior(files)


@pytest.mark.parametrize("damage", ["rank", "nan"])
def test_factors_that_make_no_change_of_the_weights_are_named(model_folder, tmp_path, damage):
    folder, path = model_folder("tiny"), tmp_path / "lora.safetensors"
    tensors, _ = adapter(stable_diffusion(folder)["unet"], ATTENTION)
    first = next(name for name in tensors if "lora_A" in name)
    tensors[first] = tensors[first][:2] if damage == "rank" else tensors[first] * float("nan")
    save_file({f"unet.{name}": value.contiguous() for name, value in tensors.items()}, path)
    words = "do not make a change of .*made for this model" if damage == "rank" else "not all finite numbers"
    with pytest.raises(InputError, match=rf"^prior\.lora={path}: unet\..*: its factors .*{words}"):
        load_prior(ModelFiles(folder, loras=locate_loras(str(path))))


def test_alphas_beside_names_of_diffusers_scale_the_change(model_folder, tmp_path):
    folder, path = model_folder("tiny"), tmp_path / "lora.safetensors"
    adapted = stable_diffusion(folder)["unet"]
    tensors, config = adapter(adapted, ATTENTION)
    alphas = {f"unet.{name.split('.lora_')[0]}.alpha": torch.tensor(float(config.lora_alpha)) for name in tensors}
    save_file({**{f"unet.{name}": value for name, value in tensors.items()}, **alphas}, path)
    prior = load_prior(ModelFiles(folder, loras=locate_loras(str(path))))
    assert_same(prior.denoiser, merged(adapted))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda tensors: {name: value.to(torch.int8) for name, value in tensors.items()},
            r"is quantised \(.*type I8\)",
        ),
        (
            lambda tensors: (
                tensors
                | in_kohyas_names(
                    {n.removeprefix("unet."): v.clone() for n, v in tensors.items()}, "lora_unet_", lambda m: 4
                )
            ),
            "has two changes, in two layouts; give one of them",
        ),
    ],
)
def test_a_file_whose_change_is_not_clear_is_refused(model_folder, tmp_path, damage, words):
    folder, path = model_folder("tiny"), tmp_path / "lora.safetensors"
    tensors, _ = adapter(stable_diffusion(folder)["unet"], ATTENTION)
    save_file(damage({f"unet.{name}": value for name, value in tensors.items()}), path)
    with pytest.raises(InputError, match=words):
        load_prior(ModelFiles(folder, loras=locate_loras(str(path))))


def test_factors_of_eight_bits_are_numbers_too(model_folder, tmp_path):
    folder = model_folder("tiny")
    tensors, _ = adapter(stable_diffusion(folder)["unet"], ATTENTION)
    small = {f"unet.{name}": value.to(torch.float8_e4m3fn) for name, value in tensors.items()}
    priors = []
    for name, values in (("eight", small), ("same", {name: value.float() for name, value in small.items()})):
        save_file(values, tmp_path / f"{name}.safetensors")
        priors.append(load_prior(ModelFiles(folder, loras=locate_loras(str(tmp_path / f"{name}.safetensors")))))
    assert_same(priors[0].denoiser, priors[1].denoiser.state_dict())


def test_settings_of_peft_that_are_damaged_are_one_line(model_folder, tmp_path):
    folder = model_folder("tiny")
    tensors, _ = adapter(stable_diffusion(folder)["unet"], ATTENTION)
    save_file({f"base_model.model.{n}": v for n, v in tensors.items()}, tmp_path / "adapter_model.safetensors")
    for damaged in ({"lora_alpha": "x"}, {"alpha_pattern": [1]}, {"alpha_pattern": {"(": 1}}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=r"^prior\.lora=.*: adapter_config\.json cannot be read \("):
            load_prior(ModelFiles(folder, loras=locate_loras(str(tmp_path))))


def test_the_weights_of_peft_are_found_in_their_folder(model_folder, tmp_path):
    folder = model_folder("tiny")
    adapted = stable_diffusion(folder)["unet"]
    tensors, _ = adapter(adapted, ATTENTION)
    save_file({f"base_model.model.{n}": v for n, v in tensors.items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2, "r": 4}))
    prior = load_prior(ModelFiles(folder, loras=locate_loras(str(tmp_path))))
    assert_same(prior.denoiser, merged(adapted))


def test_a_lora_that_fits_nothing_is_found_before_text_encoders_are_loaded(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("nfsd3d.prior.load_prior.text_pipeline", lambda *arguments: pytest.fail)
    save("pixart", tmp_path / "model")
    path = tmp_path / "lora.safetensors"
    save_file({"transformer.no.such.lora_A.weight": torch.zeros(4, 8)}, path)
    files = ModelFiles(tmp_path / "model", family="pixart", loras=locate_loras(str(path)))
    with pytest.raises(InputError, match="fits nothing in this model"):
        load_family_prior(files, "cpu", torch.float32)


def test_a_dry_run_names_the_loras(model_folder, tmp_path, capsys):
    from nfsd3d.cli.main import main

    path = tmp_path / "lora.safetensors"
    tensors, _ = adapter(stable_diffusion(EMBEDDED)["unet"], ATTENTION)
    save_file({f"unet.{name}": value for name, value in tensors.items()}, path)
    command = ["--config", "nfsd_2d", "prompt=a red cube", "machine=cpu", "prior=shapes", "dry_run=true"]
    assert main([*command, f"prior.lora={path}:0.5", f"run_dir={tmp_path / 'run'}"]) == 0
    assert f"# prior's LoRAs: {path} with weight 0.5" in capsys.readouterr().out


def test_paths_in_a_list_are_settings_of_the_library_too(tmp_path):
    from nfsd3d.api import _settings

    assert _settings("", {"prior.lora": [tmp_path / "a.safetensors"]}) == [f'prior.lora=["{tmp_path}/a.safetensors"]']
    with pytest.raises(InputError, match=r"^prior\.lora=.*is no value of a setting"):
        _settings("", {"prior.lora": [object()]})


def test_a_missing_factor_and_other_adapters_are_refused(model_folder, tmp_path):
    folder, path = model_folder("tiny"), tmp_path / "lora.safetensors"
    tensors, _ = adapter(stable_diffusion(folder)["unet"], ATTENTION)
    named = {f"unet.{name}": value for name, value in tensors.items()}
    save_file(dict(list(named.items())[1:]), path)
    with pytest.raises(InputError, match="one of its two factors is missing"):
        load_prior(ModelFiles(folder, loras=locate_loras(str(path))))
    save_file(named | {"lora_unet_x.hada_w1_a": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="of the kind LoHa"):
        locate_loras(str(path))
    save_file({**named, "unet.x.lora_magnitude_vector": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="of the kind DoRA"):
        locate_loras(str(path))
    dora, config = adapter(stable_diffusion(folder)["unet"], ATTENTION, use_dora=True)
    from diffusers import StableDiffusionPipeline

    settings = {"unet_lora_adapter_metadata": {**config.to_dict(), "target_modules": list(config.target_modules)}}
    StableDiffusionPipeline.save_lora_weights(tmp_path / "dora", dora, **settings)
    with pytest.raises(InputError, match="of the kind DoRA"):
        load_prior(ModelFiles(folder, loras=locate_loras(str(tmp_path / "dora"))))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("none.safetensors", "no such file; give FILE.safetensors"),
        ("none.safetensors:0.5", "no such file"),
        ("model.safetensors:nan", "the weight 'nan' is no finite number"),
        ("model.safetensors:1e999", "the weight '1e999' is no finite number"),
        ("model.safetensors:", "the weight '' is no finite number"),
        ("model.safetensors:much", "the weight 'much' is no finite number"),
        ("x" * 300, "cannot be read .File name too long"),
        ("empty", "the folder has no pytorch_lora_weights.safetensors or adapter_model.safetensors; .*it has no"),
        ("weights.bin", "not a .safetensors file"),
        ("model.safetensors", "give a LoRA, or a whole model as prior.model"),
        (["model.safetensors", "model.safetensors:0.5"], "is given twice"),
    ],
)
def test_a_file_that_is_no_lora_is_refused_in_one_line(tmp_path, monkeypatch, value, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.bin").write_bytes(b"")
    save_file({"conv_in.weight": torch.zeros(4, 4, 3, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=words) as error:
        locate_loras(value)
    assert "\n" not in str(error.value) and str(error.value).startswith("prior.lora=")


def test_a_weight_follows_the_last_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "b:2.safetensors"):
        save_file({"unet.x.lora_A.weight": torch.zeros(1, 1)}, tmp_path / name)
    found = locate_loras(["a.safetensors:1e-1", "b:2.safetensors"])
    assert [(str(lora.path), lora.weight) for lora in found] == [("a.safetensors", 0.1), ("b:2.safetensors", 1.0)]
    assert found[0] == LoraFile(found[0].path, 0.1)


def test_prompts_of_an_adapted_text_encoder_have_entries_of_their_own(tmp_path):
    from nfsd3d.prior.embedding_cache import EmbeddingCache

    path = tmp_path / "lora.safetensors"
    save_file({"unet.x.lora_A.weight": torch.zeros(1, 1)}, path)
    caches = [
        EmbeddingCache(tmp_path, torch.float32, loras) for loras in ((), (LoraFile(path),), (LoraFile(path, 0.5),))
    ]
    assert len({cache.path("a cube", False) for cache in caches}) == 3
