"""Divergence: when a run is stopped, what it goes back to, and how it is retried."""

import itertools
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from fake_gpu import fake_gpu
from tiny_runs import OFF, TinyPrior, final_tensors

from nfsd3d.config.compose import compose, load_run_config
from nfsd3d.errors import InputError, RunFailed
from nfsd3d.generators.images import ImageBatch
from nfsd3d.prior.schedule import VariancePreserving
from nfsd3d.runs import checkpoints
from nfsd3d.runs.metrics import read_metrics
from nfsd3d.runs.summary import read_summary
from nfsd3d.settings.train import DivergedSettings
from nfsd3d.train import task
from nfsd3d.train.build import build_parts
from nfsd3d.train.divergence import History, Watchdog, largest_parameter, largest_value, window_steps
from nfsd3d.train.interrupts import Interrupted
from nfsd3d.train.run import train_and_export

LIMITS = DivergedSettings(after=0.2, window=10, opacity_below=0.01, opacity_above=0.99, values_above=50, growth=1000)
STEPS = 100


def norms_given(watchdog, norms, first=1):
    """The step and message at which the gradient norms of consecutive steps stop the run."""
    for step, norm in enumerate(norms, first):
        watchdog.add_norm(step, torch.tensor(float(norm)))
        if (diverged := watchdog.observe(step)) is not None:
            return step, str(diverged)
    return None, None


def first_reason(numbers, limits=LIMITS, every=1, steps=STEPS, name="opacity"):
    """The step and message at which one number of each step, from step 0, stops a run of ``steps`` steps."""
    watchdog = Watchdog(limits, steps, History())
    for step, number in enumerate(numbers):
        diverged = watchdog.observe(step, **{name: number}) if step % every == 0 else None
        if diverged is not None:
            return step, str(diverged)
    return None, None


@pytest.mark.parametrize(("opacity", "word"), [(0.001, "empty"), (0.999, "full")])
@pytest.mark.parametrize("every", [1, 5])
def test_a_scene_beyond_a_limit_for_a_window_stops_the_run(opacity, word, every):
    step, reason = first_reason([0.5] * 40 + [opacity] * 40, every=every)
    assert step == 50 and word in reason and f"{opacity:.4f}" in reason


def test_limits_are_not_checked_before_their_first_step():
    step, _ = first_reason([0.0] * 40)
    assert step == 30  # the window starts at step 20


def test_a_scene_that_recovers_is_not_stopped():
    assert first_reason(([0.5] * 30 + [0.001] * 9) * 2) == (None, None)


def test_from_empty_to_full_starts_a_new_window():
    step, reason = first_reason([0.5] * 30 + [0.001] * 8 + [0.999] * 20)
    assert step == 48 and "full" in reason


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_numbers_stop_a_run_immediately(bad):
    assert norms_given(Watchdog(LIMITS, STEPS, History()), [1, 1, bad])[0] == 3
    assert first_reason([0.5, bad])[0] == first_reason([1, bad], name="largest_value")[0] == 1


def test_the_steps_of_a_window():
    assert [window_steps(0.05, steps) for steps in (1, 20, 120, 25_000)] == [1, 1, 6, 1250]
    assert window_steps(0.07, 100) == 7  # 0.07 * 100 is above 7
    assert window_steps(1, 100) == 1 and window_steps(30, 100) == 30


@pytest.mark.parametrize("experiment", ["fast", "nfsd", "nfsd_2d"])
def test_the_default_limits_stop_runs_of_every_length(experiment):
    """Also where a GPU's numbers are read at every tenth step only."""
    limits = compose(experiment, ["prompt=x", "machine=cpu"]).train.diverged
    for steps, every in itertools.product((20, 60, 120, 25_000), (1, 10)):
        for name, number in (("opacity", 0.0), ("opacity", 1.0), ("largest_value", 4600.0)):
            step, _ = first_reason([0.5] * 3 + [number] * (steps - 2), limits, every, steps, name)
            assert step is not None and step <= max(0.3 * steps, math.ceil(0.2 * steps) + 2 * every)


@pytest.mark.parametrize("steps", [20, 100])
def test_a_scene_that_ends_empty_is_stopped_at_the_last_step(steps):
    limits = replace(LIMITS, window=20)
    assert first_reason([0.5] * steps + [0.0], limits, steps=steps)[0] == steps
    assert first_reason([0.5] * steps + [0.0], replace(limits, after=1.0), steps=steps) == (None, None)


def test_an_outlier_among_gradient_norms_makes_a_state_doubtful_and_does_not_stop_the_run():
    watchdog = Watchdog(LIMITS, STEPS, History(parameters=1.0))
    assert norms_given(watchdog, [1, 2, 3, 2] * 10) == (None, None) and watchdog.sound(1.0)
    assert norms_given(watchdog, [1e4], 41) == (None, None) and not watchdog.sound(1.0)
    assert norms_given(watchdog, [1, 2, 3, 2], 42) == (None, None) and watchdog.sound(1.0)


@pytest.mark.parametrize("growth", [1.3, 3.0, 1e3, 1e8])
def test_gradient_norms_that_grow_and_stay_large_stop_the_run(growth):
    norms = [2.0] * 30 + [math.exp(min(step * math.log(growth), 60)) for step in range(70)]
    step, reason = norms_given(Watchdog(LIMITS, STEPS, History()), norms)
    assert step is not None and "gradient norm" in reason and "times its usual" in reason and "learning_rate" in reason


def test_gradient_norms_of_normal_runs_do_not_stop_them():
    """Normal runs reach 11 times their history; small first ones and an empty interlude are normal, too."""
    rng = torch.Generator().manual_seed(0)
    norms = (3 * torch.randn(STEPS, generator=rng)).exp().clamp(0.1, 100).tolist()
    interlude = [1e-9, 0.0, 1e-6, *norms[:40], *[1e-12] * 20, *norms[60:97]]
    for series in (norms, interlude):
        watchdog = Watchdog(LIMITS, STEPS, History(parameters=1.0))
        assert norms_given(watchdog, series) == (None, None) and watchdog.sound(1.0)


def test_parameters_far_outside_of_their_history_are_doubtful():
    watchdog = Watchdog(LIMITS, STEPS, History(parameters=4.0))
    assert watchdog.sound(3999.0) and not watchdog.parameters_exceed(3999.0)
    for largest in (4001.0, math.inf, math.nan):
        assert watchdog.parameters_exceed(largest) and not watchdog.sound(largest)
    assert not Watchdog(LIMITS, STEPS, History(parameters=0.0)).parameters_exceed(5.0)  # zero-initialised


def test_a_history_that_was_saved_gives_the_same_decisions():
    norms = [1, 5, 2, 8, 3, *[9e3] * 3, 2, *[9e5] * 40]
    straight = norms_given(Watchdog(LIMITS, STEPS, History()), norms)
    for cut in range(1, 20):
        first = Watchdog(LIMITS, STEPS, History())
        assert norms_given(first, norms[:cut]) == (None, None)
        first.add_norm(cut + 1, torch.tensor(float(norms[cut])))  # observed later, as on a GPU
        first.sound(1.0)
        saved = History(**json.loads(json.dumps(asdict(first.history))))
        second = Watchdog(LIMITS, STEPS, saved)
        if (diverged := second.observe(cut + 1)) is None:
            assert norms_given(second, norms[cut + 1 :], cut + 2) == straight
        else:
            assert (cut + 1, str(diverged)) == straight


def test_a_norm_that_is_not_finite_survives_a_checkpoint():
    watchdog = Watchdog(LIMITS, STEPS, History(parameters=1.0))
    watchdog.add_norm(1, torch.tensor(math.nan))
    watchdog.add_norm(2, torch.tensor(1.0))
    assert not watchdog.sound(1.0)
    saved = Watchdog(LIMITS, STEPS, History(**json.loads(json.dumps(asdict(watchdog.history), allow_nan=False))))
    assert "gradient norm is nan" in str(saved.observe(3))


def test_keeping_a_norm_does_not_synchronise_with_a_gpu():
    with fake_gpu() as gpu:
        watchdog = Watchdog(LIMITS, STEPS, History(unread=2.0))
        norms = [torch.tensor(norm, device="cuda") for norm in (1.0, math.nan, 3.0)]
        gpu.syncs.clear()
        for step, norm in enumerate(norms, 1):
            watchdog.add_norm(step, norm)
        assert gpu.syncs == [] and gpu.errors == []
        assert "gradient norm is nan" in str(watchdog.observe(3))


def test_the_largest_value_of_images_and_latents():
    latents = torch.full((2, 4, 8, 8), -3.0)
    assert largest_value(ImageBatch("latent", latents)) == 3 == largest_parameter(ImageBatch("latent", latents))
    assert largest_value(ImageBatch("image", torch.tensor([[[[0.0, 0.5, 3.0]]]]))) == 5  # [0,1] becomes [-1,1]
    latents[0, 0, 0, 0] = math.nan
    assert math.isnan(largest_value(ImageBatch("latent", latents)))
    assert math.isnan(largest_parameter(ImageBatch("latent", latents)))


def test_a_window_longer_than_the_run_is_refused():
    settings = ["prompt=x", "machine=cpu", "train.steps=60"]
    with pytest.raises(InputError, match=r"^train\.diverged\.window=100: is longer than the run \(train\.steps=60\)"):
        compose("nfsd", [*settings, "train.diverged.window=100"])
    assert compose("nfsd", [*settings, "train.diverged.window=60"]).train.diverged.window == 60
    for wrong in ("0", "-0.5", "1.5", "true", "long"):
        with pytest.raises(InputError, match=r"^train\.diverged\.window=.*: must be a fraction"):
            compose("nfsd", [*settings, f"train.diverged.window={wrong}"])


def test_a_run_of_version_0_1_with_a_longer_window_gets_a_fraction():
    old = load_run_config(Path(__file__).parents[1] / "data/runs-0.1.0/scene")
    assert old.train.steps < 100 and old.train.diverged.window == 0.05
    with pytest.raises(InputError, match=r"train\.diverged\.window=100: is longer"):
        load_run_config(Path(__file__).parents[1] / "data/runs-0.1.0/scene", ["train.diverged.window=100"])


@pytest.fixture
def poison(monkeypatch):
    """(factors by the number of a loss, from 1) -> the losses that follow are multiplied; ``killed`` ends the run."""
    original = task.step_loss

    def poisoned(factors, killed=None):
        count = itertools.count(1)

        def step_loss(*arguments):
            if (number := next(count)) == killed:
                raise Interrupted(9, "killed")  # outside of a signal handler: nothing is saved
            result = original(*arguments)
            return replace(result, loss=result.loss * factors.get(number, 1.0))

        monkeypatch.setattr(task, "step_loss", step_loss)

    return poisoned


@pytest.fixture
def fail(console):
    """(configuration, words) -> the directory and the message of a run that fails with these words."""

    def train(config, words):
        with pytest.raises(RunFailed, match=words) as error:
            train_and_export(config, console=console)
        return Path(config.run_dir), str(error.value)

    return train


def saved_steps(run_dir):
    return [checkpoints.step_of(path) for path in checkpoints.list_checkpoints(run_dir / "checkpoints")]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("tiny_prior")
def test_a_diverged_run_goes_back_to_its_last_sound_checkpoint_and_can_be_resumed(
    configure, console, poison, tmp_path, fail
):
    config = configure(**OFF)
    poison({5: math.nan})
    run_dir, message = fail(config, r"diverged: the gradient norm is nan at step 5: lower.*step 4.*--resume")
    assert "\n" not in message
    summary = read_summary(run_dir)
    assert (summary["status"], summary["steps"]) == ("diverged", 4) and "retries" not in summary
    assert saved_steps(run_dir)[-1] == 4
    poison({})
    train_and_export(config, resume=run_dir, console=console)
    straight = train_and_export(configure(**OFF, run_dir=tmp_path / "straight"), console=console)
    assert same(final_tensors(run_dir), final_tensors(straight)) and read_summary(run_dir)["status"] == "done"


@pytest.mark.usefixtures("tiny_prior")
def test_doubtful_checkpoints_are_removed_and_never_replace_the_sound_one(configure, fail, poison):
    config = configure(**OFF, **{"train.steps": 20, "train.keep_checkpoints": 1, "train.diverged.window": 9})
    poison({step: 1e6 for step in range(7, 21)})
    run_dir, _ = fail(config, r"gradient norm .* times its usual .* since step 7; .* back at step 6")
    assert saved_steps(run_dir) == [6] and read_metrics(run_dir / "metrics.jsonl")[-1]["step"] == 16


@pytest.mark.usefixtures("tiny_prior")
def test_a_retry_has_lower_learning_rates_and_ends_as_one_that_was_killed_and_resumed(
    configure, console, poison, tmp_path, monkeypatch
):
    retried = {"train.diverged.retries": 1, "train.diverged.retry_rate": 0.25, "train.steps": 10}
    poison({5: math.nan})
    straight = train_and_export(configure(**OFF, **retried, run_dir=tmp_path / "straight"), console=console)
    (line,) = [line for line in console.file.getvalue().splitlines() if "retry" in line]
    assert line.startswith("diverged: ") and line.endswith("retry 1 of 1: from step 4, with learning rates times 0.25")
    summary = read_summary(straight)
    assert (summary["status"], summary["steps"], summary["retries"]) == ("done", 10, 1)
    lines = read_metrics(straight / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]
    assert [line.get("retries", 0) for line in lines] == [0, 0, 1, 1, 1]

    for killed, newest in ((6, 4), (9, 6)):  # in the first step of the retry, and after its first checkpoint
        run_dir = tmp_path / f"killed-{killed}"
        config = configure(**OFF, **retried, run_dir=run_dir)
        poison({5: math.nan}, killed)
        with pytest.raises(Interrupted):
            train_and_export(config, console=console)
        assert saved_steps(run_dir)[-1] == newest
        poison({})
        train_and_export(config, resume=run_dir, console=console)
        assert same(final_tensors(run_dir), final_tensors(straight)) and read_summary(run_dir)["retries"] == 1
    plain = train_and_export(configure(**OFF, **{"train.steps": 10}, run_dir=tmp_path / "plain"), console=console)
    assert not same(final_tensors(plain), final_tensors(straight))


@pytest.mark.usefixtures("tiny_prior")
def test_after_the_last_retry_the_run_is_diverged_at_a_sound_state(configure, fail, poison):
    config = configure(**OFF, **{"train.diverged.retries": 2})
    poison({3: math.nan, 4: math.inf, 5: math.nan})
    run_dir, _ = fail(config, r"is nan at step 3.*; after 2 of 2 retries the run is back at step 2")
    summary = read_summary(run_dir)
    assert (summary["status"], summary["steps"], summary["retries"]) == ("diverged", 2, 2)
    assert saved_steps(run_dir)[-1] == 2
    tensors = final_tensors(run_dir)
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.usefixtures("tiny_prior")
def test_a_divergence_is_told_where_no_sound_checkpoint_is_intact(configure, fail, monkeypatch):
    original = task.step_loss

    def diverging(*arguments):
        for path in (Path(config.run_dir) / "checkpoints").glob("*.json"):
            path.write_text("{")
        result = original(*arguments)
        return replace(result, loss=result.loss * math.nan)

    config = configure(**OFF)
    monkeypatch.setattr(task, "step_loss", diverging)
    run_dir, _ = fail(config, r"diverged: the gradient norm is nan .*no intact sound checkpoint \(.*damaged")
    assert read_summary(run_dir)["status"] == "diverged"


@pytest.mark.usefixtures("tiny_prior")
def test_without_a_sound_checkpoint_the_retry_starts_from_the_beginning(configure, console, poison, tmp_path):
    config = configure(**OFF, **{"train.diverged.retries": 1, "train.diverged.retry_rate": 1.0}, run_dir=tmp_path / "a")
    poison({2: math.nan})
    run_dir = train_and_export(config, console=console)
    assert "retry 1 of 1: from step 0" in " ".join(console.file.getvalue().split())
    poison({})
    straight = train_and_export(configure(**OFF, run_dir=tmp_path / "b"), console=console)
    assert same(final_tensors(run_dir), final_tensors(straight))


@pytest.mark.usefixtures("tiny_prior")
def test_parameters_that_explode_end_the_run(configure, fail, monkeypatch):
    original, count = task.step_loss, itertools.count(1)

    def exploding(generator, *arguments):
        result = original(generator, *arguments)
        if next(count) == 5:  # a gradient with respect to the former values: the norm looks normal
            next(iter(generator.parameters())).data.mul_(0).add_(1e15)
        return result

    monkeypatch.setattr(task, "step_loss", exploding)
    config = configure(**OFF, **{"train.checkpoint_every": 3, "train.diverged.after": 1.0})
    run_dir, _ = fail(config, r"diverged: the largest parameter is 9\.9\d*e\+14 after step 6.*back at step 3")
    assert saved_steps(run_dir)[-1] == 3


@pytest.mark.usefixtures("tiny_prior")
@pytest.mark.parametrize("retries", [0, 1])
def test_a_first_gradient_that_is_not_finite_names_model_and_precision(configure, fail, poison, retries):
    config = configure(**OFF, **{"train.diverged.retries": retries, "machine.precision": "bfloat16"})
    poison({1: math.nan})
    run_dir, message = fail(config, r"in the first step.*prior\.model=shapes with machine\.precision=bfloat16")
    assert "lower train.learning_rate" not in message and "machine.precision=float32" in message
    assert "retries" not in read_summary(run_dir)


@pytest.mark.usefixtures("tiny_prior")
def test_images_and_latents_out_of_range_end_the_run(configure_2d, kind, fail):
    config = configure_2d(**{f"train.learning_rate.{kind}": 100.0})
    run_dir, _ = fail(config, r"diverged: images or latents are out of range: largest value .*values_above=50")
    summary = read_summary(run_dir)
    assert (summary["status"], summary["steps"]) == ("diverged", 0)
    assert final_tensors(run_dir)["generator.values"].abs().max() < 5


def test_a_weighting_that_is_infinite_is_refused_before_training(configure):
    class ZeroTerminal(TinyPrior):
        schedule = VariancePreserving(torch.linspace(0.999, 0.0, 100))

    infinite = {"distill.weighting": "sigma_over_alpha", "train.t_min": 0.5, "train.t_max": 1.0}
    with pytest.raises(
        InputError, match=r"^distill\.weighting=sigma_over_alpha: .*alpha is 0.*set train\.t_max=0\.98 "
    ):
        build_parts(configure(**infinite), ZeroTerminal())
    for finite in ({"train.t_max": 0.98}, {"distill.weighting": "sigma2"}):
        build_parts(configure(**{**infinite, **finite}), ZeroTerminal())
    build_parts(configure(**infinite), TinyPrior())


@pytest.mark.usefixtures("tiny_prior")
@pytest.mark.parametrize("mesh", [False, True])
def test_an_emptied_scene_is_never_done(configure, fail, mesh):
    emptied = {"train.regularizers.sparsity": 1e6, "train.learning_rate.network": 1.0, "train.steps": 20}
    config = configure(**{**OFF, **emptied, "export.mesh": mesh})
    run_dir, _ = fail(config, r"diverged: the scene is empty: .*; lower train\.regularizers\.sparsity")
    assert read_summary(run_dir)["status"] == "diverged"


@pytest.mark.parametrize("kind", ["latent"], indirect=True)
def test_latents_of_the_embedded_prior_diverge_and_succeed_after_a_resumption_with_a_lower_rate(
    configure_2d, console, fail
):
    short = {"train.batch_size": 1, "train.steps": 2, "train.diverged.retries": 1, "export.report": False}
    config = configure_2d(**short, **{"train.learning_rate.latent": 1e3})
    run_dir, _ = fail(config, r"latents are out of range.*; after 1 of 1 retries the run is back at step 0")
    assert read_summary(run_dir)["retries"] == 1
    train_and_export(configure_2d(**short, **{"train.learning_rate.latent": 0.01}), resume=run_dir, console=console)
    assert read_summary(run_dir)["status"] == "done"
    (line,) = read_metrics(run_dir / "metrics.jsonl")
    assert line["step"] == 2 and line["learning_rate_factor"] < 0.51  # the rates of the retry


@pytest.mark.usefixtures("tiny_prior")
@pytest.mark.parametrize("kind", ["image"])
def test_images_that_jump_between_their_bounds_end_the_run(configure_2d, kind, fail):
    config = configure_2d(**{f"train.learning_rate.{kind}": 10.0})  # below values_above, and clamped at the next step
    run_dir, _ = fail(
        config, r"diverged: images are out of range: .*before pixels are clamped.*lower train.learning_rate"
    )
    assert read_summary(run_dir)["status"] == "diverged"


def test_the_remedies_for_an_empty_scene_name_the_learning_rate():
    watchdog = Watchdog(replace(LIMITS, after=0.0, window=1), 10, History())
    error = [watchdog.observe(step, opacity=0.0) for step in (1, 2)][-1]
    assert "train.regularizers.sparsity" in str(error) and "train.learning_rate" in str(error)
