import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, fields
from typing import get_args

import pytest
import yaml
from omegaconf import OmegaConf

from nfsd3d.config import hardware
from nfsd3d.config.compose import compose, load_run_config, to_config
from nfsd3d.config.experiments import config_root, find_experiment
from nfsd3d.config.overrides import parse_override, quote
from nfsd3d.config.schema import Config
from nfsd3d.distill.gradient import WEIGHTINGS
from nfsd3d.distill.methods import METHODS
from nfsd3d.distill.settings import DistillSettings
from nfsd3d.errors import InputError
from nfsd3d.prior.families.table import PRESETS
from nfsd3d.settings.cameras import CameraRanges
from nfsd3d.settings.schedules import milestone_at, value_at

SETTLED = ["machine=cpu", "backend=numba", "prior=shapes"]
TRICKY_PROMPTS = [
    "a red, round mushroom",
    'a "quoted" thing',
    "it's a cube; (really)",
    "[a] {b: c}",
    "a=b",
    "ein Würfel 雪 🍄",
    "${seed} is not ${interpolated",
    "\\${x} \\\\${y} and a trailing backslash \\",
    "1e3",
    "null",
    "true",
    "two\nlines\x85\u2028three",
    "# no comment, @ & * ! | > % `",
    "~tilde +plus -dash",
]


@pytest.fixture(scope="module")
def config() -> Config:
    return compose("nfsd", ["prompt=a red cube", *SETTLED])


@pytest.mark.parametrize("method", sorted(name for name, method in METHODS.items() if not method.needs_source))
def test_an_experiment_file_equals_nfsd_with_its_method(method):
    overrides = ["prompt=a red cube", *SETTLED]
    assert compose(f"configs/{method}.yaml", overrides) == compose("nfsd", [*overrides, f"distill={method}"])


def test_the_experiments_in_2d_are_those_with_another_generator():
    overrides = ["prompt=a red cube", *SETTLED]
    assert compose("nfsd_2d", overrides) == compose("nfsd", [*overrides, "generator=latent"])
    source = ["source_image=a.png", "source_prompt=a red cube"]
    assert compose("dds_2d", [*overrides, *source]) == compose("dds", [*overrides, *source, "generator=latent"])


PRIORS = ["shapes", "sd15", "sd21", "sd21-768"]


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("generator", ["nerf", "latent", "image"])
def test_the_fast_experiment_is_a_fifth_of_the_recipe(prior, generator):
    choices = ["prompt=x", *SETTLED[:2], f"prior={prior}", f"generator={generator}"]
    full, fast = compose("nfsd", choices), compose("fast", choices)
    assert fast.train.steps * 5 == full.train.steps
    for key in ("checkpoint_every", "preview_every", "log_every"):
        assert getattr(fast.train, key) < fast.train.steps
    # A step costs no more on average, and the run ends as fine as the recipe.
    every = [step / 100 for step in range(100)]
    pixels = [sum(milestone_at(config.train.resolution, p) ** 2 for p in every) for config in (full, fast)]
    assert pixels[1] <= pixels[0]
    assert milestone_at(fast.train.resolution, 1.0) == milestone_at(full.train.resolution, 1.0)
    assert fast.to_dict().keys() == full.to_dict().keys()
    same = ("prompts", "distill", "prior", "cameras", "machine", "export")
    assert all(getattr(fast, name) == getattr(full, name) for name in same)
    assert compose("fast", [*choices, "train.steps=7"]).train.steps == 7  # explicit keys win


def test_the_fast_experiments_noise_falls_once_the_shape_stands():
    train = compose("fast", ["prompt=x", "prior=sd21"]).train
    assert [value_at(train.t_max, progress) for progress in (0, 0.25, 0.6, 1)] == [0.98, 0.98, 0.5, 0.3]
    assert [milestone_at(train.resolution, progress) for progress in (0, 0.25, 0.79, 0.8)] == [64, 256, 256, 512]


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("generator", ["nerf", "latent", "image"])
def test_the_lowmem_experiment_differs_in_the_machine_alone(prior, generator):
    choices = ["prompt=x", "machine=cpu", f"prior={prior}", f"generator={generator}"]
    full, low = compose("nfsd", choices), compose("lowmem", choices)
    machine = low.machine
    assert machine.checkpoint_encoder and machine.unet_batch_size == 1 and machine.rays_per_chunk < 512**2
    assert low.replace(machine=vars(full.machine)) == full
    assert full.machine.rays_per_chunk is full.machine.unet_batch_size is None and not full.machine.checkpoint_encoder


def test_a_run_older_than_chunk_sizes_has_none(config):
    values = config.to_dict()
    values["machine"] = {name: values["machine"][name] for name in ("name", "device", "precision")}
    assert Config.from_dict(values) == config


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("generator", ["latent", "image"])
def test_image_generators_have_separate_recipes(generator, prior):
    config = compose("sds", ["prompt=x", f"generator={generator}", f"prior={prior}"])
    assert config.makes_images and config.generator.type == generator
    assert config.train.learning_rate.given().keys() == {generator}
    assert config.train.resolution == {"shapes": 64, "sd21-768": 768}.get(prior, 512)
    assert not config.prompts.view_dependent and not config.export.mesh and not config.export.turntable
    text = yaml.safe_load(config.to_yaml())
    assert text["train"]["learning_rate"].keys() == text["generator"].keys() - {"type", "initial_std"} | {generator}


def test_editing_has_its_papers_settings(config):
    edit = compose("dds", ["prompt=a red cube", "source_prompt=a blue cube", "source_run=runs/a, b", *SETTLED])
    assert (edit.distill.method, edit.distill.guidance_scale, edit.distill.weighting) == ("dds", 7.5, "uniform")
    assert (edit.train.t_min, edit.train.t_max) == (0.05, 0.95)
    assert edit.source_run == "runs/a, b" and edit.generator == config.generator


def test_runs_that_are_older_than_a_setting_load(config):
    values = config.to_dict()
    newer = {
        "prior": ("layout", "vae"),
        "machine": ("rays_per_chunk", "unet_batch_size", "checkpoint_encoder", "memory_gb"),
        "distill": ("guidance_factor",),
    }
    for group, names in newer.items():
        for name in names:
            del values[group][name]
    older = Config.from_dict(values).to_dict()
    assert older["distill"].pop("guidance_factor") == 1.0  # what there was before the recipe had one
    assert older == {**config.to_dict(), "distill": older["distill"]}


def test_every_method_and_weighting_can_be_configured():
    assert {path.stem for path in (config_root() / "distill").glob("*.yaml")} == METHODS.keys()
    assert all((config_root() / f"{name}.yaml").exists() for name in METHODS)
    weighting = next(field for field in fields(DistillSettings) if field.name == "weighting")
    assert set(get_args(weighting.type)) == WEIGHTINGS.keys()


def test_default_negative_prompt_is_the_papers(config):
    assert config.negative_prompt == (
        "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"
    )


def distillation(method: str) -> DistillSettings:
    source = ["source_run=r", "source_prompt=y"] if METHODS[method].needs_source else []
    return compose("nfsd", ["prompt=x", f"distill={method}", *source]).distill


def test_methods_have_their_papers_scales(config):
    assert (config.distill.method, config.distill.guidance_scale, config.distill.threshold) == ("nfsd", 7.5, 0.2)
    scales = {name: distillation(name).guidance_scale for name in METHODS}
    bridge = scales.pop("bridge")
    # SDI's 7.5 counts from the conditional prediction.
    diffusion = {"nfsd": 7.5, "sds": 100, "csd": 7.5, "vsd": 7.5, "dds": 7.5, "ism": 7.5, "sdi": 8.5, "asd": 7.5}
    assert scales == diffusion | {"rfds": 100, "rfds_rev": 100, "ucm": 60, "dvrf": 7.5}
    assert [value_at(bridge, progress) for progress in (0, 0.49, 0.5, 1)] == [100, 100, 35, 35]


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_row_and_its_yaml_file_have_the_same_defaults(name):
    configured, row = distillation(name), METHODS[name]
    assert (configured.guidance_scale, configured.weighting) == (row.guidance_scale, row.weighting)


def test_weightings_are_the_papers():
    weightings = {name: distillation(name).weighting for name in METHODS}
    assert weightings == {
        **dict.fromkeys(("nfsd", "sds", "csd", "vsd", "bridge", "asd"), "sigma2"),
        **dict.fromkeys(("rfds", "rfds_rev", "ucm", "dvrf"), "velocity"),
        **dict.fromkeys(("ism", "sdi"), "sigma_over_alpha"),
        "dds": "uniform",
    }


def test_bridges_prompts_are_the_papers():
    distill = compose("bridge", ["prompt=x", "prior=sd21"]).distill
    assert distill.better_suffix == ", detailed high resolution, high quality, sharp"
    assert distill.worse_suffix == (
        ", oversaturated, smooth, pixelated, cartoon, foggy, hazy, blurry, bad structure, noisy, malformed"
    )
    assert DistillSettings.worse_suffix == distill.worse_suffix
    # The embedded model knows some of those words.
    known = compose("bridge", ["prompt=x", "prior=shapes"]).distill.worse_suffix
    assert set(known.split(", ")) < set(distill.worse_suffix.split(", "))


def test_cameras_are_the_settings_that_sampling_takes(config):
    assert isinstance(config.cameras, CameraRanges)
    assert config.cameras.distance == (2.4, 2.6)
    assert config.cameras.overhead_probability == 0.1


@pytest.mark.parametrize("prior", ["sd15", "sd21", "sd21-768"])
def test_diffusers_prior_recipes_follow_prolificdreamers_coarse_stage(prior):
    train = compose("nfsd", ["prompt=x", f"prior={prior}"]).train
    assert (train.steps, train.learning_rate.encoding, train.learning_rate.network) == (25000, 0.01, 0.001)
    before, after = 4999 / train.steps, 5000 / train.steps
    assert [milestone_at(train.resolution, progress) for progress in (0, before, after, 1)] == [64, 64, 512, 512]
    assert [value_at(train.t_max, progress) for progress in (0, before, after, 1)] == [0.98, 0.98, 0.5, 0.5]
    opaque, factor = train.regularizers.opaque, 2.25 if prior == "sd21-768" else 1
    weights = [value_at(opaque, progress) for progress in (0, 0.4, 0.7, 1)]
    assert weights == pytest.approx([0, 0, 500 * factor, 1000 * factor])
    assert train.regularizers.sparsity == 10 * factor


def test_the_finest_level_of_each_recipe(config):
    def finest(encoding):
        return encoding.base_resolution * encoding.growth ** (encoding.levels - 1)

    assert finest(config.generator.encoding) == pytest.approx(96, rel=0.01)
    assert finest(compose("nfsd", ["prompt=x", "prior=sd21"]).generator.encoding) == pytest.approx(4096, rel=0.01)


def test_explicit_keys_win_over_the_recipe():
    config = compose("nfsd", ["prompt=x", "prior=shapes", "train.steps=7", "cameras.distance=[1,2]"])
    assert config.train.steps == 7
    assert config.cameras.distance == (1, 2)


def test_auto_without_a_gpu(monkeypatch):
    monkeypatch.setattr(hardware, "_count_gpus", lambda: 0)
    config = compose("nfsd", ["prompt=x"])
    assert (config.machine.name, config.machine.device) == ("cpu", "cpu")
    assert config.machine.precision == hardware.cpu_precision()
    assert (config.backend.field, config.backend.sampler, config.prior.name) == ("numba", "numba", "shapes")


def test_the_cpus_precision_is_that_of_its_matrix_instructions(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    assert hardware.cpu_precision(cpuinfo) == "float32"
    for flag, precision in (("amx_bf16", "bfloat16"), ("avx512_bf16", "bfloat16"), ("avx512f", "float32")):
        cpuinfo.write_text(f"flags\t: fpu {flag} amx_tile\n")
        assert hardware.cpu_precision(cpuinfo) == precision
    for precision in ("float32", "bfloat16"):
        monkeypatch.setattr(hardware, "cpu_precision", lambda precision=precision: precision)
        assert compose("nfsd", ["prompt=x", "machine=cpu"]).machine.precision == precision
        assert compose("nfsd", ["prompt=x", "machine=cpu", "machine.precision=float32"]).machine.precision == "float32"


def test_auto_with_a_gpu(monkeypatch):
    monkeypatch.setattr(hardware, "_count_gpus", lambda: 1)
    monkeypatch.setattr(hardware, "torch_cuda_version", lambda: "13.0")
    monkeypatch.setattr(hardware, "driver_cuda_version", lambda: 13)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "is_installed", lambda package: package != "triton")
    config = compose("sds", ["prompt=x"])
    assert (config.machine.device, config.machine.precision, config.prior.name) == ("cuda", "bfloat16", "sd21")
    assert (config.backend.field, config.train.steps) == ("torch", 25000)
    monkeypatch.setattr(hardware, "is_installed", lambda package: True)
    monkeypatch.setattr(hardware, "triton_obstacle", lambda: None)
    chosen = compose("nfsd", ["prompt=x", "prior=shapes"]).backend
    assert (chosen.field, chosen.sampler) == ("triton", "triton")


def test_auto_prior_and_backend_follow_an_explicit_machine(monkeypatch):
    monkeypatch.setattr(hardware, "_count_gpus", lambda: 1)
    monkeypatch.setattr(hardware, "torch_cuda_version", lambda: "13.0")
    monkeypatch.setattr(hardware, "driver_cuda_version", lambda: 13)
    config = compose("nfsd", ["prompt=x", "machine=cpu", "prior=auto", "backend=auto"])
    assert (config.prior.name, config.backend.sampler) == ("shapes", "numba")


@pytest.mark.parametrize("prompt", TRICKY_PROMPTS)
def test_the_whole_value_is_one_prompt_and_config_yaml_keeps_it(prompt, tmp_path):
    config = compose("nfsd", [f"prompt={prompt}", f"negative_prompt={prompt}", *SETTLED])
    assert (config.prompt, config.negative_prompt) == (prompt, prompt)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert compose(path) == config


def test_random_prompts_survive_quoting_and_yaml(config, tmp_path):
    chunks = [*"\"'\\,=[]{}():; a~+$#%@\n\té雪🍄\x01\x85\u2028", "${", "null", "1e3", "???", "\\${", "\ufeff"]
    choice = random.Random(0)
    for _ in range(60):
        prompt = "".join(choice.choices(chunks, k=choice.randint(1, 9)))
        if not prompt.strip() or prompt == "???":
            continue
        assert _resolved(parse_override(quote(f"prompt={prompt}")).value()) == prompt
        written = prompt.replace("\\", "\\\\").replace('"', '\\"')
        first, second = parse_override(quote(f'prompt="{written}",b', sweep=True)).sweep_string_iterator()
        assert _resolved(parse_override(f"prompt={second}").value()) == "b"
        assert _resolved(parse_override(f"prompt={first}").value()) == prompt
        path = tmp_path / "config.yaml"
        path.write_text(config.replace(prompt=prompt).to_yaml(), encoding="utf-8")
        assert OmegaConf.to_container(OmegaConf.load(path), resolve=True)["prompt"] == prompt


def _resolved(value):
    return OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)["value"]


def test_paths_need_no_quotes():
    config = compose("nfsd", ["prompt=x", "run_dir=a b, (c)=[d]", "prior.model=~/my models/sd, v1"])
    assert config.run_dir == "a b, (c)=[d]"
    assert config.prior.model == "~/my models/sd, v1"
    assert compose("nfsd", ["prompt=x", "run_dir=null"]).run_dir is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "prompt is missing"),
        (["prompt="], "prompt is empty"),
        (["prompt=x", "train.stepz=3"], "unknown setting train.stepz (did you mean train.steps"),
        (["prompt=x", "steps=3"], "unknown setting steps (did you mean train.steps"),
        (["prompt=x", "distll=sds"], "unknown setting distll (did you mean distill"),
        (["prompt=x", "+train.foo=1"], "unknown setting train.foo"),
        (["prompt=x", "distill=sdss"], "distill=sdss: no such choice (did you mean sds?)"),
        (["prompt=x", "machine=gpu"], "choose machine=auto, cpu, cuda"),
        (["prompt=x", "train.steps=many"], "train.steps=many: must be a whole number"),
        (["prompt=x", "seed=1,2"], "seed=1,2: several values are a sweep; add -m"),
        (["prompt=x", "red mushroom"], "not of the form key=value"),
        (["prompt=x", "prompts.view_dependent=[a"], "cannot be understood"),
        (["prompt=x", "distill=sds", "distill.threshold=0.3"], "have no such setting; distill=nfsd has"),
        (["prompt=x", "generator=voxels"], "generator=voxels: no such choice"),
        (["prompt=x", "generator=latent", "generator.radius=2"], "the chosen groups have no such setting"),
        (["prompt=x", "generator=latent", "export.mesh=true"], "export.mesh=true: generator=latent makes pictures"),
        (["prompt=x", "generator=image", "train.random_background=0.5"], "set train.random_background=0"),
        (["prompt=x", "generator=image", "train.regularizers.opaque=[[0,0],[1,5]]"], "train.regularizers.opaque=[["),
        (["prompt=x", "generator=image", "train.shading.lambertian=1"], "set train.shading.lambertian=0"),
        (["prompt=x", "generator=image", "train.resolution=[[0,8],[1,16]]"], "pictures keep their size"),
        (["prompt=x", "generator=latent", "+train.learning_rate.network=1"], "has exactly the rates latent"),
        (["prompt=x", "distill=dds"], "distill=dds: needs something to edit: give source_run=RUN_DIR, source_mesh"),
        (["prompt=x", "distill=dds", "source_run=r"], "needs source_prompt beside source_run=r"),
        (["prompt=x", "distill=dds", "source_run=r", "source_prompt= "], "needs source_prompt"),
        (["prompt=x", "distill=dds", "source_image=i", "source_prompt=y"], "set generator=latent or generator=image"),
        (["prompt=x", "distill=dds", "source_image=i", "source_run=r", "source_prompt=y"], "leave one out"),
        (["prompt=x", "backend=tritn"], "backend=tritn: no such choice (did you mean triton?)"),
    ],
)
def test_bad_overrides_name_setting_value_and_remedy(overrides, message):
    with pytest.raises(InputError) as caught:
        compose("nfsd", overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prompt=   ", "prompt is empty"),
        ("prompt=" + "x" * 10_000, "has 10000 characters, the limit is 1000"),
        ("negative_prompt=" + "x" * 10_000, "negative_prompt has 10000 characters"),
        ("prompt=a\udcff", "Unicode"),
        ("train.steps=1.5", "train.steps=1.5: must be a whole number"),
        ("train.steps=true", "train.steps=true: must be a whole number"),
        ("train.steps='5'", "train.steps=5: must be a whole number"),
        ("train.steps=0", "train.steps=0: must be greater than 0"),
        ("train.batch_size=-1", "train.batch_size=-1"),
        ("train.resolution=0", "train.resolution=0: 0 must be at least 8"),
        ("train.resolution=[[0,64],[0.5,-8]]", "must be at least 8"),
        ("train.resolution=[[0.1,64]]", "first milestone"),
        ("train.resolution=[[0,64.5]]", "each knot must be [fraction of training, a whole number]"),
        ("train.t_min=[[0,2]]", "train.t_min"),
        ("train.t_min=high", "must be a number or a list of [fraction of training, value]"),
        ("train.t_max=[[0.5,0.9],[0.2,0.9]]", "must not decrease"),
        ("train.t_min=0.99", "must lie below t_max"),
        ("train.eps=inf", "finite"),
        ("train.regularizers.sparsity=-1", "train.regularizers.sparsity"),
        ("cameras.distance=[3,2]", "cameras.distance=[3, 2]: must be [low, high]"),
        ("cameras.fovy_deg=[0,50]", "cameras.fovy_deg"),
        ("distill.weighting=sigma", "did you mean sigma2"),
        ("export.formats=[glb,fbx]", "fbx"),
        ("export.threshold=0", "must be auto or a density above 0"),
        ("export.texture_size=63", "must be 0 (vertex colours, no texture) or from 64 to 4096"),
        ("export.texture_size=8192", "or from 64 to 4096"),
        ("export.unwrap_timeout=0", "export.unwrap_timeout"),
        ("export.turntable_size=255", "must be even"),
        ("seed=-1", "seed=-1"),
        ("machine.device=tpu", "machine.device=tpu: must be cpu, cuda or cuda:N"),
        ("train.learning_rate=0.01", "must be a group of settings, such as train.learning_rate.encoding"),
        ("train.t_max=[[0,.98],[.2,.98],[.2,.05],[1,.3]]", "and at 0.2 of training it does not"),
        ("train.diverged.opacity_above=0", "must lie below opacity_above=0"),
        ("prompts.front_deg=150", "front_deg must not exceed back_deg"),
        ("run_dir=", "run_dir"),
        ("distill.guidance_scale=[[0,-1]]", "distill.guidance_scale"),
        ("source_prompt=x", "distill=nfsd: does not read source_prompt=x: leave it out to start from what is there"),
        ("source_prompt=x", "or edit that with --config configs/dds.yaml"),
        ("source_image=x", "cannot make a NeRF of source_image=x"),
        ("generator.type=cloud", "generator=cloud"),
        ("generator.radius=-1", "generator.radius=-1: must be greater than 0"),
        ("generator.initial_std=1", "unknown setting generator.initial_std"),
        ("train.learning_rate.latent=1", "train.learning_rate={"),
        ("backend.sampler=tcnn", "backend.sampler=tcnn"),
    ],
)
def test_bad_values_name_setting_value_and_remedy(config, override, message):
    parsed = parse_override(quote(override))
    values = OmegaConf.create(config.to_dict())
    OmegaConf.update(values, parsed.key_or_group, parsed.value(), force_add=True)
    with pytest.raises(InputError) as caught:
        to_config(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_perp_neg_needs_view_words():
    assert compose("nfsd", ["prompt=x", *SETTLED, "prompts.perp_neg=true"]).prompts.perp_neg
    with pytest.raises(InputError, match=r"perp_neg=true.*view_dependent=false.*set prompts\.view_dependent=true"):
        compose("nfsd", ["prompt=x", *SETTLED, "prompts.perp_neg=true", "prompts.view_dependent=false"])


@pytest.mark.parametrize("orient", ["0.1", "[[0,0],[0.5,0],[0.5,100]]"])
def test_the_orientation_penalty_needs_normals_with_a_gradient(orient):
    overrides = ["prompt=x", *SETTLED, f"train.regularizers.orient={orient}"]
    with pytest.raises(InputError, match=r"train\.regularizers\.orient=.*set generator\.normals=finite_difference"):
        compose("nfsd", [*overrides, "generator.normals=analytic"])
    assert compose("nfsd", [*overrides, "generator.normals=finite_difference"]).generator.normals == "finite_difference"
    assert compose("nfsd", ["prompt=x", *SETTLED, "generator.normals=analytic"]).train.regularizers.orient == 0


def test_several_errors_are_reported_together():
    with pytest.raises(InputError, match=r"train.steps=0.*; train.batch_size=0"):
        compose("nfsd", ["prompt=x", "train.steps=0", "train.batch_size=0"])


def test_settings_are_immutable(config):
    for settings, name in ((config, "seed"), (config.train, "steps"), (config.generator, "radius")):
        with pytest.raises(FrozenInstanceError):
            setattr(settings, name, 5)


def test_config_yaml_omits_run_dir_and_repeats_the_run(config, tmp_path):
    text = config.replace(run_dir="somewhere", dry_run=True).to_yaml()
    content = yaml.safe_load(text)
    assert "run_dir" not in content
    assert "defaults" not in content
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    assert compose(path) == config
    changed = compose(path, ["train.steps=5", "seed=3", "run_dir=elsewhere", "dry_run=true", "prompt=b, c"])
    assert (changed.train.steps, changed.seed, changed.run_dir, changed.prompt) == (5, 3, "elsewhere", "b, c")
    assert changed.dry_run


@pytest.mark.parametrize("override", ["distill=sds", "machine=auto", "prior=sd21"])
def test_a_run_takes_no_group_overrides(config, tmp_path, override):
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    with pytest.raises(InputError, match=r"fully resolved.*--config configs/nfsd\.yaml"):
        compose(path, [override])


def test_a_config_older_than_a_setting_with_a_default(config, tmp_path):
    content = yaml.safe_load(config.to_yaml())
    del content["source_image"], content["distill"]["threshold"]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert compose(path, ["distill.threshold=0.3"]).distill.threshold == 0.3


def test_load_run_config(config, tmp_path):
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    loaded = load_run_config(tmp_path, ["train.steps=9"])
    assert loaded == config.replace(run_dir=str(tmp_path), train={**config.to_dict()["train"], "steps": 9})
    with pytest.raises(InputError, match="leave run_dir out"):
        load_run_config(tmp_path, ["run_dir=x"])
    with pytest.raises(InputError, match="no such run directory"):
        load_run_config(tmp_path / "nope")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.yaml"):
        load_run_config(tmp_path / "empty")


def test_a_users_own_file_names_the_projects_groups(tmp_path):
    folder = tmp_path / "with space, and ü"
    (folder / "cameras").mkdir(parents=True)
    (folder / "cameras" / "near.yaml").write_text("{defaults: [orbit], light_distance: [1.0, 2.0]}")
    own = folder / "mine.yaml"
    own.write_text(
        "defaults:\n  - nfsd\n  - override distill: sds\n  - override cameras: near\n  - _self_\n"
        "prompt: a pink house\ntrain: {steps: 77}\n"
    )
    config = compose(own, ["machine=cpu"])
    assert (config.prompt, config.train.steps, config.distill.method) == ("a pink house", 77, "sds")
    assert config.cameras.light_distance == (1, 2)
    assert compose(own, ["cameras=orbit"]).cameras.light_distance == (3, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {steps: 5}\n", "has no defaults list"),
        ("- a\n", "holds no settings"),
        ("defaults: [nfsd, _self_]\n a: [\n", "cannot be read as YAML"),
        ("defaults: [nfsdd, _self_]\n", "nfsdd"),
        ("defaults: [nfsd, _self_]\nprompt: a ${b}\n", r"prompt: .*write \\\$\{ for a literal"),
        ("defaults: [nfsd, _self_]\nprompt: a\ntrain: {stepz: 5}\n", "unknown setting train.stepz.*train.steps"),
    ],
)
def test_a_users_broken_file(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        compose(path)


MISSING = [
    "configs/nfsdd.yaml",
    "nfsdd",
    "",
    ".",
    "..",
    "configs",
    "/nowhere/nfsd.yaml",
    "x" * 300,
    "~nobody/nfsd.yaml",
]


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_config_lists_what_there_is(name):
    with pytest.raises(InputError, match=r"no such file.*configs/nfsd\.yaml"):
        find_experiment(name)


@pytest.mark.parametrize("folder", ["the root", "an empty one", "one with configs of its own"])
def test_the_projects_experiments_are_found_from_any_folder(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(config_root().parent if folder == "the root" else tmp_path)
    if folder == "one with configs of its own":
        (tmp_path / "configs" / "sds").mkdir(parents=True)
        (tmp_path / "configs" / "mine.yaml").write_text("defaults: [nfsd, _self_]\n")
        (tmp_path / "sds").write_text("no experiment, but a file of that name")
    names = ["sds", "sds.yaml", "configs/sds", "configs/sds.yaml", "./configs/sds.yaml"]
    assert {find_experiment(name).path for name in names} == {config_root() / "sds.yaml"}
    assert compose("configs/sds.yaml", ["prompt=x", *SETTLED]).distill.method == "sds"


def test_a_file_of_the_users_comes_before_the_projects(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "sds.yaml").write_text("defaults: [nfsd, _self_]\n")
    assert find_experiment("configs/sds.yaml").path == tmp_path / "configs" / "sds.yaml"
    assert find_experiment("sds").path == config_root() / "sds.yaml"
    (tmp_path / "notes.txt").write_text("defaults: [nfsd, _self_]\n")
    with pytest.raises(InputError, match=r"not a \.yaml file; rename it to notes\.yaml"):
        find_experiment("notes.txt")


def test_every_choice_is_composed_somewhere():
    combinations = [
        ("cpu", "numba", "shapes"),
        ("cpu", "torch", "sd15"),
        ("cuda", "nvidia", "sd21"),
        ("cuda", "triton", "sd21-768"),
        ("cpu", "numba", "shapes-flow"),
        *(("cuda", "triton", name) for name in PRESETS),
    ]
    for position, group in enumerate(("machine", "backend", "prior")):
        choices = {path.stem for path in (config_root() / group).glob("*.yaml")} - {"auto"}
        assert {combination[position] for combination in combinations} == choices
    for machine, kernels, prior in combinations:
        config = compose("nfsd", ["prompt=x", f"machine={machine}", f"backend={kernels}", f"prior={prior}"])
        assert (config.machine.name, config.prior.name) == (machine, prior)


def test_from_dict_refuses_what_is_not_plain(config):
    values = config.to_dict()
    assert Config.from_dict(json.loads(json.dumps(values))) == config
    with pytest.raises(InputError, match="unknown setting trian"):
        Config.from_dict({**values, "trian": 1})
    with pytest.raises(InputError, match="train=5: must be a group of settings"):
        Config.from_dict({**values, "train": 5})


def test_visible_gpus_follow_the_environment(monkeypatch):
    monkeypatch.setattr(hardware, "_count_gpus", lambda: 2)
    expected = {"": 0, "-1": 0, "0": 1, "0,1": 2, "1,-1,0": 1, "0,1,2,3": 2}
    for value, count in expected.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert hardware.visible_gpus() == count
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert hardware.visible_gpus() == 2


def test_torch_cuda_version_agrees_with_torch():
    import torch

    assert hardware.torch_cuda_version() == torch.version.cuda


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["machine=cuda"], "machine.device=cuda: no NVIDIA GPU is visible; use machine=cpu"),
        (["backend=nvidia"], "backend.field=tcnn: computes on CUDA only"),
        (["backend.sampler=nerfacc"], "backend.sampler=nerfacc: computes on CUDA only"),
        (["backend=triton"], "backend.field=triton: computes on CUDA only"),
        (["backend.sampler=triton"], "use backend=numba or torch with cpu"),
        (["machine.precision=float16"], "machine.precision=float16: not on a CPU"),
        (
            ["generator.encoding.precision=float16", "backend=torch"],
            "generator.encoding.precision=float16: backend.field=torch reads float32 only; choose float32, or",
        ),
    ],
)
def test_a_machine_or_backend_that_is_not_there(monkeypatch, overrides, message):
    monkeypatch.setattr(hardware, "_count_gpus", lambda: 0)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    config = compose("nfsd", ["prompt=x", "machine=cpu", *overrides])
    with pytest.raises(InputError) as caught:
        hardware.check_machine(config)
    assert message in str(caught.value)


def test_the_requirements_of_triton_on_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "_count_gpus", lambda: 1)
    monkeypatch.setattr(hardware, "torch_cuda_version", lambda: "13.0")
    monkeypatch.setattr(hardware, "driver_cuda_version", lambda: 13)
    monkeypatch.setattr(hardware, "is_installed", lambda package: True)
    monkeypatch.setattr(hardware.sysconfig, "get_path", lambda name, scheme: str(tmp_path))
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    for name in ("CUDA_VISIBLE_DEVICES", "TRITON_INTERPRET", "CC"):
        monkeypatch.delenv(name, raising=False)
    wanted = compose("nfsd", ["prompt=x", "machine=cuda", "backend=triton"])

    def obstacle():
        with pytest.raises(InputError) as caught:
            hardware.check_machine(wanted)
        choice = hardware.auto_backend("cuda")
        assert choice.value == "torch"
        assert str(caught.value) == f"backend.field=triton: {choice.reason}; or backend=torch"
        return choice.reason

    assert "no C compiler (install gcc or clang" in obstacle()
    monkeypatch.setattr(hardware.shutil, "which", lambda name: "/usr/bin/clang" if name == "clang" else None)
    assert f"no Python.h in {tmp_path}" in obstacle()
    (tmp_path / "Python.h").touch()
    hardware.check_machine(wanted)
    assert hardware.auto_backend("cuda").value == "triton"
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    monkeypatch.setenv("CC", "tcc")
    assert hardware.triton_obstacle() is None


def test_triton_interprets_on_a_cpu_where_the_environment_asks_for_it(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(hardware, "is_installed", lambda package: True)
    config = compose("nfsd", ["prompt=x", "machine=cpu", "backend=triton"])
    hardware.check_machine(config)
    monkeypatch.setattr(hardware, "is_installed", lambda package: package != "triton")
    with pytest.raises(InputError, match=r"backend\.field=triton: the package triton is not installed"):
        hardware.check_machine(config)


def test_missing_requirements_of_a_gpu_machine(monkeypatch):
    monkeypatch.setattr(hardware, "_count_gpus", lambda: 1)
    monkeypatch.setattr(hardware, "torch_cuda_version", lambda: "13.0")
    monkeypatch.setattr(hardware, "driver_cuda_version", lambda: 13)
    monkeypatch.setattr(hardware, "is_installed", lambda package: package not in ("tinycudann", "triton"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cases = {
        "machine.device=cuda:1": "only 1 GPU",
        "backend=numba": "computes on the CPU only",
        "backend=nvidia": "the package tinycudann is not installed",
        "backend=triton": "the package triton is not installed (it comes with CUDA builds of torch for Linux)",
    }
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for override, message in cases.items():
        with pytest.raises(InputError, match=re.escape(message)):
            hardware.check_machine(compose("nfsd", ["prompt=x", "machine=cuda", override]))
    hardware.check_machine(compose("nfsd", ["prompt=x", "machine=cuda"]))
    monkeypatch.setattr(hardware, "torch_cuda_version", lambda: None)
    with pytest.raises(InputError, match="built without CUDA"):
        hardware.check_machine(compose("nfsd", ["prompt=x", "machine=cuda"]))


class Library:
    """A library of C functions that return 0, or else ``failing``, and answer through a pointer."""

    def __init__(self, failing=(), **answers):
        self.failing, self.answers, self.called = failing, answers, []

    def __getattr__(self, name):
        if name not in self.answers and not name.endswith(("Init_v2", "Shutdown", "cuInit")):
            raise AttributeError(name)

        def function(*arguments):
            self.called.append(name)
            if name in self.answers:
                arguments[0]._obj.value = self.answers[name]
            return int(name in self.failing)

        return function


def test_gpus_are_counted_by_the_management_library_or_by_cuda(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    libraries = {}

    def load(name):
        if name not in libraries:
            raise OSError(f"{name}: cannot open shared object file")
        return libraries[name]

    monkeypatch.setattr(hardware.ctypes, "CDLL", load)
    monkeypatch.setattr(hardware.platform, "system", lambda: "Linux")
    assert (hardware.visible_gpus(), hardware.driver_cuda_version()) == (0, 0)
    cuda = libraries["libcuda.so.1"] = Library(cuDeviceGetCount=1, cuDriverGetVersion=13000)
    assert (hardware.visible_gpus(), hardware.driver_cuda_version()) == (1, 13)
    nvml = libraries["libnvidia-ml.so.1"] = Library(nvmlDeviceGetCount_v2=4)  # too old to tell a version
    asked = len(cuda.called)
    assert (hardware.visible_gpus(), hardware.driver_cuda_version()) == (4, 0)
    assert nvml.called.count("nvmlShutdown") == 2 and len(cuda.called) == asked  # before a fork, CUDA is left alone
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,-1,3")
    assert hardware.visible_gpus() == 2
    libraries["libnvidia-ml.so.1"] = Library(failing=("nvmlInit_v2",), nvmlDeviceGetCount_v2=4)
    assert hardware.visible_gpus() == 1
    cuda.failing = ("cuInit",)
    assert hardware.visible_gpus() == 0


@pytest.mark.parametrize(("driver", "usable"), [(12, False), (13, True), (14, True), (0, True)])
def test_a_driver_that_is_older_than_torch(monkeypatch, driver, usable):
    monkeypatch.setattr(hardware, "_ask", lambda question, _: driver * 1000 + 40 if "Driver" in question else 1)
    monkeypatch.setattr(hardware, "torch_cuda_version", lambda: "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (hardware.cuda_obstacle() is None) == usable
    assert hardware.auto_machine().value == ("cuda" if usable else "cpu")
    if not usable:
        with pytest.raises(InputError, match=r"machine\.device=cuda: the GPU's driver is for CUDA 12 and .* for 13\.0"):
            hardware.check_machine(compose("nfsd", ["prompt=x", "machine=cuda"]))


def test_threads_compose_at_the_same_time():
    with ThreadPoolExecutor(8) as pool:
        seeds = [
            config.seed for config in pool.map(lambda seed: compose("nfsd", ["prompt=x", f"seed={seed}"]), range(8))
        ]
    assert seeds == list(range(8))
