"""The oracle fit: a NeRF fitted to true views reproduces them, in an ordinary run directory."""

import io
import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from nfsd3d.api import load_run
from nfsd3d.config.compose import compose
from nfsd3d.errors import InputError, RunFailed
from nfsd3d.evaluate import oracle_fit
from nfsd3d.evaluate.oracle_fit import fit_oracle, photometric_loss, render_batches
from nfsd3d.generators.base import RenderOptions
from nfsd3d.runs.checkpoints import list_checkpoints
from nfsd3d.shapes.world.grammar import parse_prompt
from nfsd3d.shapes.world.render import render_views
from nfsd3d.train.build import build_generator
from nfsd3d.train.interrupts import Interrupted
from nfsd3d.train.plan import plan_at
from nfsd3d.train.run import train_and_export
from nfsd3d.views.cameras import orbit

SMALL = (
    "generator.encoding={levels: 4, features: 2, log2_entries: 12, base_resolution: 8, growth: 1.6}",
    "generator.hidden_width=16",
    "generator.occupancy_resolution=16",
    "generator.samples_per_ray=40",
    "train.resolution=32",
    "train.learning_rate={encoding: 0.05, network: 0.02, background: 0.01}",
    "train.eps=1e-8",
    "train.preview_size=16",
    "train.log_every=10",
    "train.tensorboard=false",
)
CUBE, MUG = "a red cube", "a blue and yellow striped mug"


@pytest.fixture(autouse=True)
def few_true_views(monkeypatch):
    monkeypatch.setattr(oracle_fit, "TRUE_VIEWS", 32)


@pytest.fixture(scope="module")
def console():
    return Console(file=io.StringIO(), width=80)


def small(prompt, steps=50, *overrides):
    fixed = [f"prompt={prompt}", "machine=cpu", "backend=numba", "prior=shapes", f"train.steps={steps}"]
    return compose("nfsd", [*fixed, *SMALL, *overrides])


@pytest.fixture(scope="module")
def fits(tmp_path_factory, console):
    """Oracle fits of two compositions, by prompt."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle_fit, "TRUE_VIEWS", 32)
        folder = tmp_path_factory.mktemp("oracle_fits")
        return {p: load_run(fit_oracle(small(p), folder / p.replace(" ", "-"), console)) for p in (CUBE, MUG)}


def psnr(generator, prompt):
    """In dB, against unlit true views from all around that no fit has seen, before green."""
    cameras = orbit(6, 32, elevation_deg=20.0)
    green = torch.tensor([0.2, 0.6, 0.3]).expand(6, 3)
    seen = generator.render_in_chunks(cameras, RenderOptions(green)).image
    truth = render_views([parse_prompt(prompt)] * 6, cameras, green[:, :, None, None].expand_as(seen), ambient=1.0)
    return float(-10 * (seen - truth.image).square().mean().log10())


@pytest.mark.parametrize("prompt", [CUBE, MUG])
def test_a_fit_comes_to_look_like_its_own_composition(fits, prompt):
    (other,) = {CUBE, MUG} - {prompt}
    reached = psnr(fits[prompt].generator, prompt)
    assert reached > 20
    assert reached > psnr(build_generator(small(prompt)), prompt) + 5
    assert reached > psnr(fits[other].generator, prompt) + 5


def test_a_fit_is_a_run(fits, tmp_path):
    run = fits[CUBE]
    assert run.step == 50 and run.config.prompt == CUBE
    summary = run.summary
    assert (summary["status"], summary["steps"], summary["steps_planned"]) == ("done", 50, 50)
    assert (summary["method"], summary["prior"], summary["guidance_scale"]) == ("oracle_fit", None, None)
    assert summary["network_evaluations"] == 0 and summary["seconds"] > 0
    assert summary["final_metrics"]["psnr"] == run.metrics[-1]["psnr"] > run.metrics[0]["psnr"]
    assert run.views(n=2, size=16).shape == (2, 16, 16, 3)
    assert {path.suffix for path in run.turntable(tmp_path, frames=8, size=16)} == {".png", ".mp4"}


def test_distillation_does_not_resume_a_fit(fits, console):
    run = fits[CUBE]
    before = json.dumps(run.summary)
    with pytest.raises(InputError, match=r"method=oracle_fit.*cannot be resumed"):
        train_and_export(run.config, resume=run.directory, console=console)
    assert json.dumps(run.summary) == before


def test_the_same_seed_gives_the_same_fit(tmp_path, console):
    states = [
        load_run(fit_oracle(small(CUBE, 3, f"seed={seed}"), tmp_path / name, console)).generator.state_dict()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert all(states[0][name].equal(states[1][name]) for name in states[0])
    assert not states[0]["field.network.0.weight"].equal(states[2]["field.network.0.weight"])


def test_true_views_are_unlit_and_take_any_background(console, rng):
    config = small("a white sphere", 4, "train.batch_size=3")
    batches = render_batches(
        parse_prompt("a white sphere"), config.cameras, config.train, rng, torch.device("cpu"), console
    )
    assert len(batches) * 3 >= 32 > (len(batches) - 1) * 3
    backgrounds = torch.rand(3, 3, generator=rng)
    for batch in batches[:3]:
        image = batch.before(backgrounds)
        solid, empty = (batch.coverage == 1).expand_as(image), (batch.coverage == 0).expand_as(image)
        assert image[solid].allclose(torch.tensor(0.95))
        assert image[empty].allclose(backgrounds[:, :, None, None].expand_as(image)[empty])
        edges = batch.resized(16).coverage
        assert edges.shape == (3, 1, 16, 16) and edges.mean().allclose(batch.coverage.mean())
        assert batch.resized(16).cameras.height == batch.resized(16).cameras.width == 16


def test_the_views_follow_the_resolution_of_the_plan(tmp_path, console):
    config = small(CUBE, 4, "train.resolution=[[0.0, 16], [0.5, 24]]", "train.log_every=1")
    run = load_run(fit_oracle(config, tmp_path / "run", console))
    assert [line["resolution"] for line in run.metrics] == [16, 16, 24, 24]


def test_the_loss_is_half_the_squared_error_and_the_regularisers(console, rng):
    config = small(CUBE, 4, "train.regularizers={sparsity: 0.0, opaque: 0.0, orient: 0.0, z_variance: 0.0}")
    generator = build_generator(config)
    batches = render_batches(parse_prompt(CUBE), config.cameras, config.train, rng, torch.device("cpu"), console)
    plan = plan_at(config.train, 0.0)
    state = rng.get_state()
    result = photometric_loss(generator, batches, rng, plan)
    loss, metrics = result.loss, result.metrics
    mean = 10 ** (-float(metrics.psnr) / 10)
    assert loss.item() == pytest.approx(0.5 * mean * 3 * 32 * 32, rel=1e-4)
    assert metrics.grad_norm.item() <= (2 * loss.item()) ** 0.5 * 1.0001  # the mean of norms, at most the norm
    rng.set_state(state)
    sparse = replace(plan, regularizers={**plan.regularizers, "sparsity": 20.0})
    regularised = photometric_loss(generator, batches, rng, sparse).loss
    assert regularised.item() > loss.item() + 20 * 0.1  # sqrt(opacity^2 + .01) is at least a tenth


@pytest.mark.parametrize("prompt", ["a corgi", "a mauve cube", "a red and red dotted cube"])
def test_another_prompt_is_refused_before_anything_is_made(tmp_path, prompt, console):
    with pytest.raises(InputError, match=r'no composition of the world of shapes.*"a purple house"'):
        fit_oracle(small(prompt), tmp_path / "run", console)
    assert not (tmp_path / "run").exists()


def test_a_used_directory_is_refused(fits, console):
    with pytest.raises(InputError, match="already used"):
        fit_oracle(small(CUBE), fits[CUBE].directory, console)


def test_a_fit_that_diverges_is_an_error_and_no_run(tmp_path, console):
    config = small(CUBE, 8, "train.diverged={after: 0.0, window: 2, opacity_below: 0.99, opacity_above: 1.0}")
    with pytest.raises(RunFailed, match=r"diverged: the scene is empty"):
        fit_oracle(config, tmp_path / "run", console)
    with pytest.raises(InputError, match="not a run directory"):
        load_run(tmp_path / "run")


def test_the_directory_belongs_to_the_fit_until_its_summary_is_written(tmp_path, console, monkeypatch):
    locked = []
    monkeypatch.setattr(oracle_fit, "write_summary", lambda folder, *_: locked.append((folder / ".lock").exists()))
    fit_oracle(small(CUBE, 2), tmp_path / "run", console)
    assert locked == [True]


def test_an_interrupted_fit_is_no_run(tmp_path, console, monkeypatch):
    original = oracle_fit.photometric_loss

    def signalling(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(oracle_fit, "photometric_loss", signalling)
    with pytest.raises(Interrupted):
        fit_oracle(small(CUBE, 5), tmp_path / "run", console)
    assert list_checkpoints(tmp_path / "run" / "checkpoints")  # for a look, not for going on
    with pytest.raises(InputError, match="not a run directory"):
        load_run(tmp_path / "run")
