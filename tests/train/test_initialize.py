"""Editing: a run starts as its source, is compared with it in every step, and follows the difference of the prompts."""

import shutil
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from tiny_runs import OFF

import nfsd3d
from nfsd3d.errors import InputError
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.runs.checkpoints import SOURCE
from nfsd3d.runs.preflight import check
from nfsd3d.runs.source_image import open_image
from nfsd3d.train import build, run
from nfsd3d.train.plan import plan_at
from nfsd3d.train.previews import images_of
from nfsd3d.train.run import train_and_export
from nfsd3d.train.step import step_loss

pytestmark = pytest.mark.usefixtures("tiny_prior")

DDS = {"method": "dds", "guidance_scale": 7.5, "weighting": "uniform"}


@pytest.fixture
def image(tmp_path) -> Path:
    """A wide image: grey in the middle, red and blue at its sides."""
    pixels = np.full((20, 40, 3), 128, np.uint8)
    pixels[:, :10], pixels[:, 30:] = (255, 0, 0), (0, 0, 255)
    imageio.imwrite(tmp_path / "wide.png", pixels)
    return tmp_path / "wide.png"


@pytest.fixture
def edit_of_image(configure_2d, image):
    """(prompt, other changes) -> an edit of the image, with the source prompt "a red cube"."""

    def configured(prompt="a red cube", **changes):
        source = {"source_image": str(image), "source_prompt": "a red cube"}
        return configure_2d(**{"prompt": prompt, "distill": DDS, **source, **changes})

    return configured


def step(parts, config):
    plan = plan_at(config.train, 0.0)
    parts.generator.update(0, parts.rng)
    return step_loss(
        parts.generator, parts.prior, parts.bank, parts.distillation, parts.ranges, plan, parts.rng, parts.source
    )


def test_every_image_starts_as_the_centre_of_the_source(edit_of_image):
    parts = build.build_parts(edit_of_image())
    images = images_of(parts.generator, parts.prior)
    assert images.shape[0] == 3
    size = images.shape[-1]
    inside = images[..., size // 8 : -size // 8]  # the sides of the image are cropped, except for resizing blur
    torch.testing.assert_close(inside, torch.full_like(inside, 128 / 255), atol=0.01, rtol=0)


def test_an_edit_to_the_same_prompt_has_zero_gradient(edit_of_image):
    config = edit_of_image()
    parts = build.build_parts(config)
    result = step(parts, config)
    result.loss.backward()
    assert float(result.metrics.grad_norm) == 0
    assert parts.generator.values.grad.abs().max() == 0
    assert parts.source is not parts.generator and not any(p.requires_grad for p in parts.source.parameters())


def test_an_edit_leads_from_one_prompt_to_the_other(edit_of_image, kind, console):
    """A red cube is bright in the tiny prior's world, and what is dull is dark."""
    changes = {"train.steps": 20, "train.learning_rate_factor": 1.0, "prompts.view_dependent": False}
    run_dir = train_and_export(
        edit_of_image(**changes, prompt="a red cube, front view", source_prompt="dull"), console=console
    )
    assert imageio.imread(run_dir / "source.png").mean() == pytest.approx(128, abs=1)
    assert imageio.imread(run_dir / "image.png")[:8, :8].mean() > 140
    assert "their initial images" in (run_dir / "report.html").read_text()


def test_a_nerf_starts_as_its_source_run_and_is_seen_like_it(configure, tmp_path, console):
    first = train_and_export(configure(**OFF, run_dir=tmp_path / "first"), console=console)
    changes = {"distill": DDS, "source_run": str(first), "source_prompt": "a red cube", "seed": 9}
    config = configure(**OFF, **changes, **{"train.random_background": 0.5}, run_dir=tmp_path / "second")
    check_fits(config)
    parts = build.build_parts(config)
    assert isinstance(parts.source, NeRF)
    other = build.build_generator(config).state_dict()["field.network.0.weight"]
    assert not torch.equal(parts.source.state_dict()["field.network.0.weight"], other)
    # The same cameras, background, light, points and noise: the same predictions, and no gradient.
    calls = []
    original = NeRF.render

    def recorded(self, cameras, rng, options):
        calls.append((cameras, rng.get_state(), options))
        return original(self, cameras, rng, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NeRF, "render", recorded)
        plan = plan_at(config.train, 0.0)
        arguments = (parts.prior, parts.bank, parts.distillation, parts.ranges, plan, parts.rng, parts.source)
        metrics = step_loss(parts.generator, *arguments).metrics
    (cameras, state, options), (source_cameras, source_state, source_options) = calls
    assert source_cameras is cameras and torch.equal(source_state, state)
    assert all(getattr(source_options, name) is getattr(options, name) for name in vars(options) if name != "normals")
    assert float(metrics.grad_norm) == pytest.approx(0, abs=1e-5)
    assert float(metrics.grad_norm_delta_c) > 0

    run_dir = train_and_export(config, console=console)
    shutil.rmtree(first)  # the run has kept what it started from
    longer = configure(**OFF, **changes, **{"train.random_background": 0.5, "train.steps": 8}, run_dir=run_dir)
    with pytest.raises(InputError, match=r"source_run=.*no such run directory"):
        check_fits(longer)
    check_fits(longer, run_dir)
    assert train_and_export(longer, resume=run_dir, console=console) == run_dir
    kept = build.build_parts(longer, kept_source=run_dir / SOURCE).source.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in parts.source.state_dict().items())


def test_an_edit_resumes_without_its_source_image(edit_of_image, image, console):
    run_dir = train_and_export(edit_of_image(), console=console)
    shown = (run_dir / "source.png").read_bytes()
    image.unlink()
    assert train_and_export(edit_of_image(**{"train.steps": 8}), resume=run_dir, console=console) == run_dir
    assert (run_dir / "source.png").read_bytes() == shown


def test_a_run_resumes_only_from_its_own_source(edit_of_image, image, tmp_path, console):
    run_dir = train_and_export(edit_of_image(), console=console)
    other = image.with_name("other.png")
    imageio.imwrite(other, np.full((20, 20, 3), 30, np.uint8))
    with pytest.raises(
        InputError, match=r"source_image=.*other\.png: .* was started from .*wide\.png; .*start a new run"
    ):
        check_fits(edit_of_image(source_image=str(other)), run_dir)
    check_fits(edit_of_image(), run_dir)


def test_a_source_left_by_a_failed_start_is_ignored(edit_of_image, image, console):
    other = image.with_name("other.png")
    imageio.imwrite(other, np.full((20, 20, 3), 30, np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "compile_prior", None)  # the start fails after the source is saved
        with pytest.raises(TypeError):
            train_and_export(edit_of_image(source_image=str(other)), console=console)
    run_dir = train_and_export(edit_of_image(), console=console)
    assert imageio.imread(run_dir / "source.png").mean() == pytest.approx(128, abs=1)


def test_any_method_may_start_from_another_run(configure, configure_2d, image, tmp_path, console):
    first = train_and_export(configure(**OFF, run_dir=tmp_path / "first"), console=console)
    config = configure(**OFF, source_run=str(first), seed=9, run_dir=tmp_path / "second")
    check_fits(config)
    parts = build.build_parts(config)
    trained = build.build_parts(configure(source_run=None, seed=9)).generator.state_dict()
    name = "field.network.0.weight"
    assert parts.source is None and not torch.equal(parts.generator.state_dict()[name], trained[name])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nfsd3d.train.build.build_prior", None)  # the source's own state needs no prior
        loaded = nfsd3d.load_run(first).generator.state_dict()
    assert all(torch.equal(parts.generator.state_dict()[key], value) for key, value in loaded.items())
    assert train_and_export(config, console=console) == tmp_path / "second"

    started = build.build_parts(configure_2d(source_image=str(image))).generator.values
    assert torch.equal(started[0], started[1]) and started.std() > 0


def check_fits(config, resume=None):
    check(config.replace(prompt="a red cube", negative_prompt="blurry"), resume)


def test_images_of_a_run_can_be_edited_too(configure_2d, tmp_path, console):
    first = train_and_export(configure_2d(run_dir=tmp_path / "first"), console=console)
    config = configure_2d(
        distill=DDS, source_run=str(first), source_prompt="a red cube", run_dir=tmp_path / "second", seed=3
    )
    check_fits(config)
    before, parts = build.build_parts(configure_2d(run_dir=tmp_path / "first")), build.build_parts(config)
    assert not torch.equal(parts.generator.values, before.generator.values)
    assert torch.equal(parts.generator.values, parts.source.values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_image": "no.png"}, "source_image=no.png: no such file"),
        ({"source_image": "text.png"}, "source_image=text.png: cannot be read as an image"),
        ({"source_image": "half.png"}, "source_image=half.png: cannot be read as an image"),
        ({"source_image": "folder"}, "source_image=folder: no such file"),
        ({"source_run": "nowhere"}, "source_run=nowhere: no such run directory"),
        ({"source_run": "folder"}, "source_run=folder: not a run directory"),
        ({"source_run": "untrained"}, "source_run=untrained: holds no checkpoint"),
        ({"source_run": "nerf"}, "source_run=nerf: has generator.type=nerf, and this run"),
        ({"source_run": "few"}, "source_run=few: has train.batch_size=2, and this run 3"),
        ({"source_image": "wide.png", "source_prompt": "a red qube"}, "source_prompt: the prior does not know 'qube'"),
    ],
)
def test_a_source_that_cannot_be_used(configure_2d, configure, image, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "half.png").write_bytes(image.read_bytes()[:60])
    few = configure_2d(run_dir=tmp_path / "few", **{"train.batch_size": 2})
    configs = {"folder": None, "untrained": configure_2d(), "nerf": configure(), "few": few}
    for name, config in configs.items():
        (tmp_path / name).mkdir(exist_ok=True)
        if config is not None:
            (tmp_path / name / "config.yaml").write_text(config.to_yaml())
        if name in ("nerf", "few"):
            (tmp_path / name / "checkpoints").mkdir()
            (tmp_path / name / "checkpoints" / "step-000001.json").write_text("{}")
    config = configure_2d(**{"distill": DDS, "source_prompt": "a red cube", "negative_prompt": "blurry", **changes})
    with pytest.raises(InputError) as caught:
        check(config)
    assert message in str(caught.value)


def test_a_nerf_of_another_size_is_named(configure, tmp_path, console):
    first = train_and_export(configure(**OFF, run_dir=tmp_path / "first"), console=console)
    changes = {"distill": DDS, "source_run": str(first), "source_prompt": "a red cube", "generator.hidden_width": 4}
    with pytest.raises(InputError, match=r"has generator\.hidden_width=8, and this run 4.*set generator\.hidden_width"):
        check_fits(configure(**changes, run_dir=tmp_path / "second"))


def test_images_are_read_upright_and_over_white(tmp_path):
    clear = np.zeros((2, 2, 4), np.uint8)
    clear[0, 0] = (255, 0, 0, 255)
    imageio.imwrite(tmp_path / "clear.png", clear)
    assert np.asarray(open_image(str(tmp_path / "clear.png"))).tolist() == [
        [[255, 0, 0], [255, 255, 255]],
        [[255, 255, 255], [255, 255, 255]],
    ]
