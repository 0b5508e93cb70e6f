"""Models of the families from folders: a whole run, and what is refused before anything is loaded."""

import dataclasses
import fnmatch
import gc
import json
import os
import shutil
import sys
import types
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import PIPELINES, SIZE, pipeline_of, prior_of, save, sentencepiece_model
from transformers import T5Config, T5EncoderModel

from nfsd3d.cli.main import main
from nfsd3d.config.compose import compose
from nfsd3d.errors import InputError
from nfsd3d.prior import load_prior as loading
from nfsd3d.prior.families.table import FAMILIES, PRESETS
from nfsd3d.prior.files.download import fetch
from nfsd3d.prior.files.family_folder import check_not_distilled, family_in
from nfsd3d.prior.files.locate import Location, ModelSource
from nfsd3d.prior.files.locate_family import _contents, locate_family
from nfsd3d.prior.files.weight_files import weight_files
from nfsd3d.prior.priors import PRIORS
from nfsd3d.runs.preflight import check

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in version 1.0.0:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

PROMPT, NEGATIVE = "a red cube", "dull"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> a folder of a small model of this family, made once."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "model"
            save(name, made[name])
        return made[name]

    return folder


@pytest.fixture
def copied(folders, tmp_path):
    """name -> a copy to be damaged."""

    def folder(name):
        shutil.copytree(folders(name), tmp_path / "model")
        return tmp_path / "model"

    return folder


def image_size(name):
    return SIZE * (2 if name == "sana" else 8)


def config_of(name, folder, **changes):
    settings = {
        "prior": name,
        "prior.model": folder,
        "prior.image_size": image_size(name),
        "negative_prompt": NEGATIVE,
        "generator": "latent",
        "train.batch_size": 2,
        "machine": "cpu",
        **changes,
    }
    return compose("nfsd_2d", [f"prompt={settings.pop('prompt', PROMPT)}", *(f"{k}={v}" for k, v in settings.items())])


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_a_folder_gives_the_predictions_of_the_pipeline_it_was_saved_from(folders, name):
    config = config_of(name, folders(name))
    assert family_in(folders(name)) is FAMILIES[name]
    source = check(config)
    assert source.folder == folders(name)
    prior = PRIORS[name].build(config.prior, "cpu", torch.float32)
    expected = prior_of(pipeline_of(name), name)
    assert prior.latent_shape == expected.latent_shape and prior.image_size == image_size(name)
    z, t = torch.randn(2, *prior.latent_shape), prior.schedule.time(torch.tensor([300, 700]))
    both = [each.predict_eps(z, t, each.embed([PROMPT, NEGATIVE], [False, True])) for each in (prior, expected)]
    torch.testing.assert_close(*both, rtol=1e-5, atol=1e-5)
    image = torch.rand(1, 3, 40, 40)
    torch.testing.assert_close(prior.encode(image), expected.encode(image), rtol=1e-5, atol=1e-5)
    before = len(prior.tensors())
    prior.free_text_encoder()
    assert len(prior.tensors()) < before
    assert prior.blank_context(2).tensors.keys() == expected.embed([PROMPT]).tensors.keys()


@pytest.mark.parametrize("name", ["sdxl", "sd3", "sana"])
def test_a_run_with_a_family(folders, tmp_path, capsys, name):
    arguments = [
        *("--config", "nfsd_2d", f"prompt={PROMPT}", f"negative_prompt={NEGATIVE}", "machine=cpu", f"prior={name}"),
        *(f"prior.model={folders(name)}", f"prior.image_size={image_size(name)}", f"run_dir={tmp_path / 'run'}"),
        *("train.steps=2", "train.batch_size=1", "train.checkpoint_every=2", "train.preview_every=2"),
    ]
    assert main(arguments) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["prior"]) == ("done", str(folders(name)))
    capsys.readouterr()
    assert main([*arguments, f"run_dir={tmp_path / 'other'}", "dry_run=true"]) == 0
    assert f"# prior's model: {folders(name)}" in capsys.readouterr().out


def test_presets_have_a_file_a_family_and_mirrors():
    for name, preset in PRESETS.items():
        config = compose("nfsd", ["prompt=x", "machine=cpu", f"prior={name}"])
        assert config.prior.name == name and preset.family in FAMILIES
        assert all(len(hub_id.split("/")) == 2 for hub_id in preset.hub_ids)
        with pytest.raises(
            InputError, match=rf"^prior={name} is not available\. Tried {preset.hub_ids[0]}: not in the"
        ):
            locate_family(config.prior.__class__(**{**vars(config.prior), "offline": True}))


def _edit(path, **values):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **values}))


def _shard(folder, path=None):
    """The weights in two files with an index, as large models are shipped."""
    path = path or folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    names = sorted(tensors)
    halves = {"first": names[: len(names) // 2], "second": names[len(names) // 2 :]}
    places = {}
    for half, keys in halves.items():
        file = f"{path.stem}-{half}.safetensors"
        save_file({key: tensors[key] for key in keys}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(keys, file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{path.name}.index.json").write_text(json.dumps(index))
    path.unlink()


def test_weights_in_several_files_and_in_a_variant_are_read(copied):
    folder = copied("sd3")
    _shard(folder / "transformer")
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    vae.rename(vae.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert weight_files(folder / "vae", "x")[0] == "fp16" and len(weight_files(folder / "transformer", "x")[1]) == 2
    config = config_of("sd3", folder)
    check(config)
    prior = PRIORS["sd3"].build(config.prior, "cpu", torch.float32)
    assert (
        prior.predict_eps(torch.randn(1, *prior.latent_shape), torch.tensor([0.5]), prior.embed([PROMPT]))
        .isfinite()
        .all()
    )


def test_an_encoder_that_the_index_leaves_out_is_not_needed(copied):
    folder = copied("sd3")
    _edit(folder / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    shutil.rmtree(folder / "text_encoder_3")
    config = config_of("sd3", folder)
    check(config)
    embedded = PRIORS["sd3"].build(config.prior, "cpu", torch.float32).embed([PROMPT]).tensors["embeddings"]
    assert not embedded[:, 14:].any()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: _edit(f / "model_index.json", _class_name="StableDiffusionXLPipeline"), "use prior=sdxl"),
        (lambda f: _edit(f / "model_index.json", _class_name="FluxPipeline"), "whose guidance is distilled"),
        (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").unlink(), r"vae lacks \*\.safetensors"),
        (lambda f: (f / "transformer/config.json").unlink(), "transformer/config.json cannot be read"),
        (lambda f: _edit(f / "model_index.json", vae=[None, None]), "has no vae in its model_index"),
        (lambda f: _shard(f / "transformer") or next((f / "transformer").glob("*second*")).unlink(), "lacks .*second"),
        (
            lambda f: (f / "text_encoder/model.safetensors").write_bytes(b"PK\x03\x04" + b"0" * 99),
            "a pickle of PyTorch",
        ),
        (lambda f: _edit(f / "transformer/config.json", guidance_embeds=True), "guidance is built into it"),
        (lambda f: _edit(f / "scheduler/scheduler_config.json", _class_name="LCMScheduler"), "a consistency model"),
        (
            lambda f: (f / "model_index.json").unlink(),
            r"lacks model_index\.json; give a whole Stable Diffusion 3 model",
        ),
        (
            lambda f: _edit(f / "model_index.json", _class_name="StableDiffusion3Img2ImgPipeline"),
            "of the pipeline StableDiffusion3Img2ImgPipeline .*; give one of the pipeline StableDiffusion3Pipeline",
        ),
        (lambda f: _edit(f / "model_index.json", text_encoder=[None, None]), "has no text_encoder in its model_index"),
        (lambda f: _edit(f / "model_index.json", tokenizer_2=[None, None]), "has no tokenizer_2 in its model_index"),
        (lambda f: _edit(f / "model_index.json", tokenizer_3=[None, None]), "has no tokenizer_3 in its model_index"),
        (lambda f: shutil.rmtree(f / "tokenizer_3"), "lacks tokenizer_3/, which model_index.json names"),
        (lambda f: _edit(f / "vae/config.json", scaling_factor=None), "vae's scaling_factor=None is not a positive"),
        (lambda f: _edit(f / "vae/config.json", scaling_factor=0), "vae's scaling_factor=0 is not a positive number"),
        (lambda f: _edit(f / "vae/config.json", latent_channels=8), "the denoiser takes 16 channels .* has 8; inpaint"),
        (lambda f: _edit(f / "transformer/config.json", in_channels=33), "the denoiser takes 33 channels"),
        (lambda f: _edit(f / "text_encoder/config.json", quantization_config={}), r"text_encoder is quantised"),
        (
            lambda f: _edit(f / "scheduler/scheduler_config.json", _class_name="DDIMScheduler"),
            "is a rectified flow, and its scheduler is one of diffusion models",
        ),
        (lambda f: _cast(f / "transformer", torch.int8), r"is quantised \(.*weight is of type I8\), which is not read"),
        (lambda f: _cast(f / "text_encoder_3", torch.int8), r"text_encoder_3/model.safetensors: is quantised"),
        (lambda f: _add(f / "transformer", "x.weight_scale"), r"is quantised \(x.weight_scale scales other weights\)"),
        (
            lambda f: _shard(f / "transformer") or _edit(next((f / "transformer").glob("*index*")), metadata=None),
            "names no weight files of its folder",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_before_torch_reads_it(copied, monkeypatch, damage, words):
    folder = copied("sd3")
    damage(folder)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", None)
    with pytest.raises(InputError, match=words) as caught:
        check(config_of("sd3", folder))
    assert "\n" not in str(caught.value) and "prior.model" in str(caught.value)


def _cast(folder, dtype):
    """The weights of a part as whole numbers."""
    (file,) = folder.glob("*.safetensors")
    save_file({name: value.to(dtype) for name, value in load_file(file).items()}, file)


def _add(folder, name):
    """One more tensor in the weights of a part."""
    (file,) = folder.glob("*.safetensors")
    save_file({**load_file(file), name: torch.ones(1)}, file)


def test_a_text_encoder_without_some_of_its_weights_is_refused(copied):
    folder = copied("sd3")
    (file,) = (folder / "text_encoder_3").glob("*.safetensors")
    tensors = load_file(file)
    save_file({name: value for name, value in tensors.items() if "block.1." not in name}, file, {"format": "pt"})
    config = config_of("sd3", folder)
    check(config)
    with pytest.raises(
        InputError, match=r"text_encoder_3 lacks weights of T5EncoderModel \(first: encoder\.block\.1\."
    ):
        PRIORS["sd3"].build(config.prior, "cpu", torch.float32).embed([PROMPT])
    save_file({**tensors, "decoder.block.0.x.weight": torch.ones(1)}, file, {"format": "pt"})  # of the rest of T5
    PRIORS["sd3"].build(config.prior, "cpu", torch.float32).embed([PROMPT])
    more = {name.replace("block.1.", "block.2."): value.clone() for name, value in tensors.items()}
    save_file({**tensors, **more}, file, {"format": "pt"})
    config = config_of("sd3", folder, **{"prior.cache": False})
    with pytest.raises(
        InputError, match=r"holds weights that its config\.json does not describe \(first: enc.*block\.2"
    ):
        PRIORS["sd3"].build(config.prior, "cpu", torch.float32).embed([PROMPT])


def test_a_text_encoder_may_end_texts_with_several_tokens(copied):
    folder = copied("sana")
    _edit(folder / "text_encoder/config.json", eos_token_id=[1, 107])  # as Gemma 2's for chats
    check(config_of("sana", folder))


def test_text_encoders_of_another_width_are_one_line(copied):
    from nfsd3d.train.build import build_parts

    folder = copied("pixart")
    encoder = T5EncoderModel(T5Config.from_pretrained(folder / "text_encoder", d_model=24))
    encoder.save_pretrained(folder / "text_encoder")
    with pytest.raises(InputError, match=r"^prior\.model: the denoiser does not take what the text encoders give \("):
        build_parts(config_of("pixart", folder))


def test_prompts_of_another_model_have_entries_of_their_own(copied, tmp_path):
    """Copies of two models whose files have the same names, sizes and times."""
    first, second = copied("pixart"), tmp_path / "second"
    shutil.copytree(first, second)
    (file,) = (second / "text_encoder").glob("*.safetensors")
    save_file({name: 2 * value for name, value in load_file(file).items()}, file, {"format": "pt"})
    for path in (*first.rglob("*"), *second.rglob("*")):
        os.utime(path, (0, 0))

    def embedded(folder, **changes):
        prior = PRIORS["pixart"].build(config_of("pixart", folder, **changes).prior, "cpu", torch.float32)
        return prior.embed([PROMPT]).tensors["embeddings"]

    assert not torch.equal(embedded(first), embedded(second))
    assert torch.equal(embedded(second), embedded(second, **{"prior.cache": False}))


def test_an_entry_of_other_content_is_as_if_it_were_not_there(folders, tmp_path):
    config = config_of("pixart", folders("pixart"))
    before = PRIORS["pixart"].build(config.prior, "cpu", torch.float32).embed([PROMPT]).tensors["embeddings"]
    (entry,) = (tmp_path / "cache/nfsd3d/embeddings").iterdir()
    save_file({"other": torch.ones(1)}, entry)
    after = PRIORS["pixart"].build(config.prior, "cpu", torch.float32).embed([PROMPT]).tensors["embeddings"]
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("name", "size", "largest"), [("sd3", 4096, None), ("zimage", 10**6, None), ("sdxl", 10**9, 32768)]
)
def test_an_image_larger_than_the_denoisers_tables_is_refused(folders, name, size, largest):
    folder = folders(name)
    config = json.loads((folder / FAMILIES[name].denoiser / "config.json").read_text())
    if largest is None:
        patches = config["pos_embed_max_size"] if name == "sd3" else min(config["axes_lens"][1:])
        largest = patches * 2 * image_size(name) // SIZE
    with pytest.raises(InputError, match=rf"^prior\.image_size={size}: at most {largest} for this .*; set {largest}$"):
        check(config_of(name, folder, **{"prior.image_size": size}))


def test_weights_of_another_shape_are_named_when_they_are_loaded(copied):
    folder = copied("pixart")
    _edit(folder / "transformer/config.json", num_layers=3)
    config = config_of("pixart", folder)
    check(config)
    with pytest.raises(InputError, match=r"transformer lacks weights of PixArtTransformer2DModel \(first: "):
        PRIORS["pixart"].build(config.prior, "cpu", torch.float32)


@pytest.mark.parametrize(
    ("name", "tokenizer", "reads", "words"),
    [("sdxl", "tokenizer", 14, 13), ("sd3", "tokenizer", 14, 13), ("pixart", "tokenizer", 300, 300)],
)
def test_a_prompt_too_long_for_one_of_the_encoders_says_which_and_by_how_much(folders, name, tokenizer, reads, words):
    config = config_of(name, folders(name), prompt=" ".join(["red" if words < 100 else "a"] * words))
    excess = words + (2 if reads == 14 else 1) - reads
    told = rf"is {excess} tokens too long for the prior's {tokenizer}, which reads {reads}: shorten it$"
    with pytest.raises(InputError, match=rf"^prompt='(red|a) .*{told}"):
        check(config)
    prior = PRIORS[name].build(config.prior, "cpu", torch.float32)
    with pytest.raises(InputError, match=told):
        prior.embed([config.prompt])


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_prompt_too_long_is_found_before_the_text_encoders_are_loaded(folders, name, monkeypatch):
    """With what a family writes around a prompt, which only its tokenizer can count."""
    monkeypatch.setattr("nfsd3d.prior.files.load_family._load", lambda *arguments: pytest.fail(str(arguments)))
    prior = PRIORS[name].build(config_of(name, folders(name)).prior, "cpu", torch.float32)
    with pytest.raises(InputError, match=r"prompt='a a .* tokens too long for the prior's tokenizer"):
        prior.embed(["a cube", " ".join("a" * max(FAMILIES[name].lengths.values()))])


def test_a_tokenizer_of_sentencepiece_is_read_and_counted(copied):
    folder = copied("pixart")
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    shutil.move(sentencepiece_model(folder), folder / "tokenizer" / "spiece.model")
    settings = {"tokenizer_class": "T5Tokenizer", "model_max_length": 300, "extra_ids": 0, "pad_token": "<unk>"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    _edit(folder / "model_index.json", tokenizer=["transformers", "T5Tokenizer"])
    check(config_of("pixart", folder))
    with pytest.raises(InputError, match=r"prompt=.* tokens too long for the prior's tokenizer, which reads 300"):
        check(config_of("pixart", folder, prompt="a red cube, " * 60))
    prior = PRIORS["pixart"].build(config_of("pixart", folder).prior, "cpu", torch.float32)
    embedded = prior.embed([PROMPT, ""])
    assert embedded.tensors["mask"].sum(1).tolist() == [counted(folder, PROMPT), 1]


def counted(folder, text):
    from nfsd3d.prior.files.family_folder import prompt_counters

    (counter,) = prompt_counters(folder, FAMILIES["pixart"], "prior.model")
    return counter.count(text)


@pytest.mark.parametrize(("name", "size", "nearest"), [("sd3", 100, 96), ("sana", 33, 32), ("sdxl", 20, 16)])
def test_an_image_size_between_latents_is_refused(folders, name, size, nearest):
    with pytest.raises(InputError, match=rf"^prior\.image_size={size}: must be a multiple .*; set {nearest}$"):
        check(config_of(name, folders(name), **{"prior.image_size": size}))


@pytest.mark.parametrize(
    "name",
    [
        "stabilityai/sdxl-turbo",
        "ByteDance/SDXL-Lightning",
        "models--Tongyi-MAI--Z-Image-Turbo",
        "FLUX.1-schnell",
        "x/LCM",
        "someone/sd3_turbo_v2",
        "Hyper-SDXL-8steps",
    ],
)
def test_distilled_models_are_refused_by_name(name):
    with pytest.raises(InputError, match=r"^prior\.model=x: is a distilled model .* guidance is built into it"):
        check_not_distilled(name, "prior.model=x")


def test_other_names_are_not_distilled():
    for name in (
        "Tongyi-MAI/Z-Image",
        "alcmodel",
        "turbocharged-car",
        "flux-de-distilled",
        "undistilled",
        "stabilityai/stable-diffusion-xl-base-1.0",
    ):
        check_not_distilled(name, "x")


def test_what_a_family_does_not_have_is_one_line(folders, tmp_path):
    for changes, words in (
        ({"prior.vae": "x/y"}, r"^prior\.vae=x/y: not for Stable Diffusion XL models"),
        ({"prior.model": tmp_path / "one.safetensors"}, "single files of this family are not read"),
        ({"prior.model": "someone/sdxl-turbo"}, "is a distilled model"),
        ({"prior.model": folders("sd3")}, r"is a Stable Diffusion 3 model .*; use prior=sd3"),
    ):
        (tmp_path / "one.safetensors").write_bytes(b"x")
        with pytest.raises(InputError, match=words):
            check(config_of("sdxl", folders("sdxl"), **changes))


def test_vsd_needs_a_unet_of_stable_diffusion(folders):
    with pytest.raises(InputError, match=r"^distill=vsd: adapts the UNet of .*choose another method"):
        check(config_of("sd3", folders("sd3"), distill="vsd"))  # before anything is loaded


def test_a_family_is_checked_without_torch(folders):
    import subprocess

    settings = ["prompt=a red cube", "negative_prompt=dull", "machine=cpu", "prior=sd3"]
    settings += [f"prior.model={folders('sd3')}", f"prior.image_size={image_size('sd3')}"]
    code = (
        "import sys; from nfsd3d.config.compose import compose; from nfsd3d.runs.preflight import check;"
        f"check(compose('nfsd_2d', {settings})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_known_prompts_need_no_text_encoder(copied, tmp_path):
    folder, entries = copied("sd3"), tmp_path / "cache" / "nfsd3d" / "embeddings"
    config = config_of("sd3", folder)

    def embedded(prompts, negative, **changes):
        prior = PRIORS["sd3"].build(dataclasses.replace(config.prior, **changes), "cpu", torch.float32)
        context = prior.embed(prompts, negative)
        return context.tensors, len(prior._text_encoders.networks())

    first, loaded = embedded([PROMPT, ""], [False, True])
    assert loaded == 3 and len(list(entries.glob("*.safetensors"))) == 2
    again, loaded = embedded([PROMPT, ""], [False, True])
    assert loaded == 0 and all(torch.equal(again[name], first[name]) for name in first)
    assert embedded([PROMPT], [True])[1] == 3  # the same text as a negative prompt is another entry
    assert embedded([PROMPT], [False], cache=False)[1] == 3
    for entry in entries.iterdir():
        entry.write_bytes(entry.read_bytes()[:-9])  # a damaged one is made anew
    repaired, loaded = embedded([PROMPT, ""], [False, True])
    assert loaded == 3 and all(torch.equal(repaired[name], first[name]) for name in first)
    os.utime(folder / "text_encoder" / "config.json", (1, 1))  # other files are another model
    assert embedded([PROMPT], [False])[1] == 3
    assert not list(entries.glob("*.tmp"))


def test_the_denoiser_is_loaded_after_the_text_encoders_were_freed(folders, monkeypatch):
    order, load = [], loading.load_networks

    def loaded(*arguments):
        order.append([encoder() is not None for encoder in encoders])
        return load(*arguments)

    monkeypatch.setattr(loading, "load_networks", loaded)
    config = config_of("sd3", folders("sd3"))
    prior = PRIORS["sd3"].build(dataclasses.replace(config.prior, cache=False), "cpu", torch.float32)
    context = prior.embed([PROMPT])
    encoders = [weakref.ref(encoder) for encoder in prior._text_encoders.networks()]
    assert len(encoders) == 3 and prior.device == torch.device("cpu") and prior.latent_shape[0] == 16
    memory = prior.without_weights()  # for the prediction of memory, neither
    assert order == [] and memory.device.type == "meta"
    prior.free_text_encoder()
    gc.collect()
    prior.predict_eps(torch.zeros(1, *prior.latent_shape), torch.tensor([0.5]), context)
    prior.decode(torch.zeros(1, *prior.latent_shape))
    assert order == [[False] * 3]


@pytest.mark.parametrize("name", ["sd3", "pixart", "auraflow"])
def test_t5_in_half_precision_keeps_the_layers_that_overflow_in_single_precision(folders, name):
    config = config_of(name, folders(name))
    prior = PRIORS[name].build(dataclasses.replace(config.prior, cache=False), "cpu", torch.float16)
    prior.embed([PROMPT])
    encoder = next(part for part in prior._text_encoders.networks() if "T5" in type(part).__name__)
    kept = {n: value.dtype for n, value in encoder.named_parameters() if n.endswith(".wo.weight")}
    assert kept and set(kept.values()) == {torch.float32}
    others = {value.dtype for n, value in encoder.named_parameters() if ".wo." not in n}
    assert others == {torch.float16} and prior.denoiser.dtype == torch.float16


def test_a_cache_that_cannot_be_written_is_no_error(folders, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    prior = PRIORS["pixart"].build(config_of("pixart", folders("pixart")).prior, "cpu", torch.float32)
    assert len(prior.embed([PROMPT])) == 1


def test_files_of_a_folder_are_fetched_as_its_family(folders):
    files = fetch(locate_family(config_of("sd3", folders("sd3")).prior))
    assert files.folder == folders("sd3") and files.family == "sd3"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """folder -> the hub has it as own/model, whose files are copied as they are downloaded."""
    import huggingface_hub

    def serve(source):
        names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
        siblings = [types.SimpleNamespace(rfilename=name) for name in names]
        monkeypatch.setattr(
            huggingface_hub.HfApi, "model_info", lambda _, hub_id, timeout: types.SimpleNamespace(siblings=siblings)
        )

        def download(hub_id, allow_patterns):
            for name in names:
                if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                    (tmp_path / "downloaded" / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(source / name, tmp_path / "downloaded" / name)
            return str(tmp_path / "downloaded")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    return serve


@pytest.mark.parametrize("name", ["sd3", "zimage"])
def test_a_download_holds_what_is_needed_and_no_index_of_other_files(copied, hub, tmp_path, name):
    source = copied(name)
    part = source / ("text_encoder_3" if name == "sd3" else "text_encoder")
    (whole,) = part.glob("*.safetensors")
    half = part / whole.name.replace(".safetensors", ".fp16.safetensors")
    shutil.copy(whole, half)
    if name == "sd3":
        _shard(part, whole)
    hub(source)
    location = Location(f"prior={name}", None, ("own/model",), _contents(PRESETS[name]))
    folder = fetch(ModelSource(location)).folder
    assert folder == tmp_path / "downloaded"
    assert {path.name for path in (folder / part.name).glob("*safetensors*")} == {half.name}
    check(config_of(name, folder))


def test_a_variant_that_is_complete_is_read_beside_an_index_that_is_not(copied):
    part = copied("sd3") / "text_encoder_3"
    (whole,) = part.glob("*.safetensors")
    half = part / whole.name.replace(".safetensors", ".fp16.safetensors")
    shutil.copy(whole, half)
    _shard(part, whole)
    next(part.glob("*second*")).unlink()
    assert weight_files(part, "prior.model") == ("fp16", [half])
