"""Whole tiny runs: their files, and how they end on errors."""

import io
import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from rich.console import Console
from safetensors.torch import load_file

from nfsd3d.errors import InputError, RunFailed
from nfsd3d.runs import checkpoints
from nfsd3d.runs.metrics import read_metrics
from nfsd3d.runs.summary import read_summary
from nfsd3d.train import loop, outcome, run, task
from nfsd3d.train.build import build_generator, build_parts
from nfsd3d.train.divergence import Diverged, largest_parameter
from nfsd3d.train.interrupts import STOP_SIGNALS, Interrupted, StopRequest, stop_requests
from nfsd3d.train.run import train_and_export

OFF = {"export.mesh": False, "export.turntable": False, "export.report": False}

pytestmark = pytest.mark.usefixtures("tiny_prior")


@pytest.fixture
def console() -> Console:
    """Keeps what is printed, without a terminal."""
    return Console(file=io.StringIO(), width=80)


def _path(config):
    return Path(config.run_dir)


def final_tensors(run_dir):
    return checkpoints.newest(run_dir).tensors


def metrics_without_times(run_dir):
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in ("seconds", "steps_per_second")} for line in lines]


def stop_after(step, signum, monkeypatch):
    """The process gets a signal during the given step (counted from 1)."""
    original, count = task.step_loss, iter(range(1, 1000))

    def signalling(*arguments):
        if next(count) == step:
            os.kill(os.getpid(), signum)
        return original(*arguments)

    monkeypatch.setattr(task, "step_loss", signalling)


def test_a_run_writes_all_its_files(configure, console):
    config = configure(**{"export.formats": ["glb", "ply"], "train.tensorboard": True})
    run_dir = train_and_export(config, console=console)
    assert str(run_dir) == config.run_dir
    files = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
    assert files >= {
        "config.yaml",
        "summary.json",
        "metrics.jsonl",
        "previews/step-000003.png",
        "previews/step-000006.png",
        "turntable.mp4",
        "turntable.png",
        "mesh/model.glb",
        "mesh/model.ply",
        "report.html",
    }
    assert {path for path in files if path.startswith("checkpoints/")} == {
        f"checkpoints/step-00000{step}.{suffix}" for step in (4, 6) for suffix in ("json", "safetensors")
    }
    assert sum(path.startswith("previews/") for path in files) == 2
    assert any(path.startswith("tensorboard/") for path in files)
    assert not any("/." in f"/{path}" for path in files)  # no temporary files

    summary = read_summary(run_dir)
    assert (summary["status"], summary["reason"], summary["steps"]) == ("done", None, 6)
    assert (summary["prompt"], summary["method"]) == ("a red cube", "nfsd")
    assert (summary["prior"], summary["seed"]) == ("shapes", 0)
    assert summary["seconds"] > 0 and summary["peak_memory_mb"]["host"] > 50
    assert summary["exported"] == ["turntable.png", "turntable.mp4", "mesh/model.glb", "mesh/model.ply", "report.html"]
    assert summary["versions"]["torch"] == torch.__version__ and summary["device"]

    lines = read_metrics(run_dir / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert lines[-1].keys() >= {
        *("grad_norm", "grad_norm_delta_c", "grad_norm_rest", "grad_norm_parameters", "opacity", "samples_per_ray"),
        *("t_min", "t_max", "resolution", "steps_per_second"),
    }
    assert summary["final_metrics"]["opacity"] == lines[-1]["opacity"]
    mesh = trimesh.load_scene(run_dir / "mesh/model.glb").to_geometry()
    assert mesh.visual.material.baseColorTexture.size == (64, 64)
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    assert mesh.is_watertight

    printed = console.file.getvalue()
    assert re.search(r"step 2/6 .*steps/s.*left.*opacity", printed) and "step 6/6" in printed
    assert str(run_dir / "mesh/model.glb") in printed


def test_the_same_seed_gives_the_same_run_and_another_one_does_not(configure, tmp_path, console):
    runs = [
        train_and_export(configure(**OFF, seed=seed, run_dir=tmp_path / name), console=console)
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    ]
    a, b, c = map(final_tensors, runs)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["generator.field.network.0.weight"], c["generator.field.network.0.weight"])


@pytest.mark.parametrize(("signum", "code"), [(signum, 128 + signum) for signum in STOP_SIGNALS])
def test_an_interrupted_run_resumes_to_the_same_result(configure, tmp_path, console, monkeypatch, signum, code):
    straight = train_and_export(configure(**OFF, run_dir=tmp_path / "straight"), console=console)
    config = configure(**OFF, run_dir=tmp_path / "a run")
    before = signal.getsignal(signum)
    with monkeypatch.context() as patch:
        stop_after(3, signum, patch)
        with pytest.raises(Interrupted) as stopped:
            train_and_export(config, console=console)
    assert stopped.value.exit_code == code
    assert signal.getsignal(signum) is before
    run_dir = tmp_path / "a run"
    assert f"nfsd3d --resume '{run_dir}'" in str(stopped.value)
    summary = read_summary(run_dir)
    assert (summary["status"], summary["steps"]) == ("interrupted", 3)  # the step was finished, and saved
    assert summary["signal"] == signal.Signals(signum).name and summary["signal"] in summary["reason"]
    assert checkpoints.newest(run_dir).steps == 3

    assert train_and_export(config, resume=run_dir, console=console) == run_dir
    done, expected = final_tensors(run_dir), final_tensors(straight)
    assert done.keys() == expected.keys()
    assert all(torch.equal(done[name], expected[name]) for name in expected)
    assert metrics_without_times(run_dir) == metrics_without_times(straight)
    first, last = summary, read_summary(run_dir)
    assert last["status"] == "done" and last["seconds"] > first["seconds"]
    assert last["network_evaluations"] == read_summary(straight)["network_evaluations"] > first["network_evaluations"]


def test_a_finished_run_may_be_made_longer(configure, console, monkeypatch):
    config = configure(**OFF)
    run_dir = train_and_export(config, console=console)
    with pytest.raises(InputError, match=r"train.steps=5.*has 6 steps"), monkeypatch.context() as patch:
        patch.setattr(run, "build_parts", None)  # nothing is loaded before
        train_and_export(configure(**OFF, **{"train.steps": 5}), resume=run_dir, console=console)
    longer = configure(**OFF, **{"train.steps": 8})
    train_and_export(longer, resume=run_dir, console=console)
    assert read_summary(run_dir)["steps"] == 8
    assert [line["step"] for line in read_metrics(run_dir / "metrics.jsonl")] == [2, 4, 6, 8]
    assert "steps: 8" in (run_dir / "config.yaml").read_text()


def test_an_interruption_of_the_export_is_resumed_there(configure, console, monkeypatch):
    config = configure()
    original = run.export_results

    def interrupted(*arguments, on_view):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, on_view=on_view)

    with monkeypatch.context() as patch:
        patch.setattr(run, "export_results", interrupted)
        with pytest.raises(Interrupted, match="after step 6"):
            train_and_export(config, console=console)
    run_dir = train_and_export(config, resume=_path(config), console=console)
    assert (run_dir / "mesh/model.glb").exists()
    assert read_summary(run_dir)["final_metrics"]["opacity"] > 0


def test_a_directory_with_a_run_is_not_used_again(configure, console):
    config = configure(**OFF, **{"train.steps": 1})
    train_and_export(config, console=console)
    with pytest.raises(InputError, match=r"holds a run already.*--resume"):
        train_and_export(config, console=console)


def test_a_run_without_checkpoint_cannot_be_resumed(configure, console):
    config = configure()
    with pytest.raises(InputError, match="no checkpoint"):
        train_and_export(config, resume=_path(config), console=console)


def test_a_gradient_that_is_not_finite_ends_the_run_with_sound_parameters(configure, console, monkeypatch):
    original, count = task.step_loss, iter(range(100))

    def poisoned(*arguments):
        result = original(*arguments)
        return replace(result, loss=result.loss * (float("nan") if next(count) == 4 else 1.0))

    monkeypatch.setattr(task, "step_loss", poisoned)
    config = configure()
    with pytest.raises(RunFailed, match=r"diverged.*gradient norm is nan at step 5"):
        train_and_export(config, console=console)
    run_dir = _path(config)
    summary = read_summary(run_dir)
    assert (summary["status"], summary["steps"]) == ("diverged", 4) and "gradient norm" in summary["reason"]
    assert [line["step"] for line in read_metrics(run_dir / "metrics.jsonl")] == [2, 4, 5]
    assert all(tensor.isfinite().all() for tensor in final_tensors(run_dir).values())


class SecondNetwork(torch.nn.Linear):
    """Trains beside the generator, as VSD's does."""

    def __init__(self):
        super().__init__(2, 2)
        self.optimizer = torch.optim.AdamW(self.parameters())


@pytest.mark.parametrize("second", [False, True])
def test_non_finite_gradients_are_dropped_between_logged_steps(configure, console, monkeypatch, tmp_path, second):
    """As on a GPU, where reading them would synchronise; here on the CPU, with a patched configuration."""
    original, count = task.step_loss, iter(range(100))

    def poisoned(*arguments):
        result = original(*arguments)
        bad = next(count) == 2
        if second:
            trained.lora(torch.ones(2)).sum().mul(float("inf") if bad else 1.0).backward()
        return replace(result, loss=result.loss * (float("inf") if bad and not second else 1.0))

    monkeypatch.setattr(task, "step_loss", poisoned)
    config = configure(**{"train.log_every": 5, "train.checkpoint_every": 100})
    trained = replace(task.ScoreDistillation.of(config, build_parts(config)), lora=SecondNetwork() if second else None)
    elsewhere = config.replace(machine={**vars(config.machine), "device": "cuda"})
    roll_back, before = loop.Checkpointer.roll_back, []

    def seen(checkpointer, error):
        networks = [trained.generator.state_dict(), {} if trained.lora is None else trained.lora.state_dict()]
        before.append(all(value.isfinite().all() for state in networks for value in state.values()))
        return roll_back(checkpointer, error)

    monkeypatch.setattr(loop.Checkpointer, "roll_back", seen)
    with pytest.raises(Diverged, match=r"gradient norm is (inf|nan) at step 5"):
        loop.train(elsewhere, tmp_path, trained, loop.Progress(), StopRequest(), console)
    assert before == [True] and largest_parameter(trained.generator) < 10
    assert checkpoints.newest(tmp_path).steps == 0  # the only sound checkpoint


@pytest.mark.parametrize(("limits", "word"), [((0.99, 1.0), "empty"), ((0.0, 0.001), "full")])
def test_a_collapsed_scene_ends_the_run_at_its_last_sound_state(configure, console, limits, word):
    below, above = limits
    diverged = {"after": 0.5, "window": 2, "opacity_below": below, "opacity_above": above}
    config = configure(**{"train.steps": 20, "train.diverged": diverged})
    with pytest.raises(RunFailed, match=f"diverged.*{word}"):
        train_and_export(config, console=console)
    summary = read_summary(_path(config))
    assert (summary["status"], summary["steps"]) == ("diverged", 0) and word in summary["reason"]
    assert checkpoints.newest(_path(config)).steps == 0
    assert read_metrics(_path(config) / "metrics.jsonl")[-1]["step"] == 12


def test_a_failed_export_is_not_done_and_is_repeated_by_a_resumption(configure, console):
    config = configure(**{"export.threshold": 1e6})
    with pytest.raises(RunFailed, match=r"empty.*threshold.*nfsd3d export"):
        train_and_export(config, console=console)
    run_dir, summary = _path(config), read_summary(_path(config))
    assert (summary["status"], summary["steps"]) == ("failed", 6) and "threshold" in summary["reason"]
    assert (run_dir / "report.html").exists() and (run_dir / "turntable.mp4").exists()
    trained = final_tensors(run_dir)
    train_and_export(configure(), resume=run_dir, console=console)
    summary = read_summary(run_dir)
    assert (summary["status"], summary["reason"]) == ("done", None) and "mesh/model.glb" in summary["exported"]
    assert all(torch.equal(trained[name], value) for name, value in final_tensors(run_dir).items())


def test_an_export_that_runs_out_of_memory_names_the_reason(configure, console, monkeypatch):
    def hungry(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    monkeypatch.setattr("nfsd3d.export.scene.extract_scene", hungry)
    with pytest.raises(RunFailed, match=r"mesh: out of GPU memory; lower export\.resolution.*the training is done"):
        train_and_export(configure(), console=console)
    summary = read_summary(_path(configure()))
    assert summary["status"] == "failed" and "turntable.mp4" in summary["exported"]


def test_out_of_memory_before_the_first_step_names_the_model(configure, console, monkeypatch):
    def hungry(config, **kept):
        raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    config = configure(**OFF)
    with monkeypatch.context() as patch:
        patch.setattr(run, "build_parts", hungry)
        with pytest.raises(RunFailed, match=r"before the first step; .*smaller prior; start it anew"):
            train_and_export(config, console=console)
    assert read_summary(_path(config))["status"] == "failed"
    train_and_export(config, console=console)  # in the same folder
    with monkeypatch.context() as patch:
        patch.setattr(run, "build_parts", hungry)
        with pytest.raises(RunFailed, match=r"go on with: nfsd3d --resume"):
            train_and_export(config, resume=_path(config), console=console)
    assert read_summary(_path(config))["steps"] == 6


def test_an_interruption_while_the_model_is_loaded_stops_at_once(configure, console, monkeypatch):
    def interrupted(config, **kept):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")

    monkeypatch.setattr(run, "build_parts", interrupted)
    with pytest.raises(Interrupted, match="after step 0; start it anew") as stopped:
        train_and_export(configure(**OFF), console=console)
    assert stopped.value.exit_code == 143 and read_summary(_path(configure()))["status"] == "interrupted"


def test_signals_while_the_summary_is_written_do_not_cut_it_short(configure, console, monkeypatch):
    write = outcome.write_summary

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        write(*arguments)

    def loading(config, **kept):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run, "build_parts", loading)
    monkeypatch.setattr(outcome, "write_summary", interrupted)
    config = configure(**OFF)
    with pytest.raises(Interrupted, match="SIGTERM after step 0"), stop_requests() as outer, outer.at_once():
        train_and_export(config, console=console)
    assert read_summary(_path(config))["signal"] == "SIGTERM"


def test_an_unexpected_error_is_in_the_summary(configure, console, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(task, "step_loss", broken)
    config = configure()
    with pytest.raises(ZeroDivisionError):
        train_and_export(config, console=console)
    assert read_summary(_path(config))["status"] == "failed"
    assert "oh" in read_summary(_path(config))["reason"]


def test_a_terminal_gets_a_bar(configure):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    train_and_export(configure(**OFF), console=console)
    printed = console.file.getvalue()
    assert "6/6" in printed and "steps/s" in printed and "opacity" in printed


def test_schedules_reach_optimiser_and_metrics(configure, console, monkeypatch):
    config = configure(
        **OFF,
        **{
            "train.learning_rate_factor": [[0.0, 0.0], [0.5, 0.0], [0.5, 1.0]],
            "train.resolution": [[0.0, 8], [0.5, 16]],
            "train.log_every": 1,
            "train.checkpoint_every": 3,
            "train.weight_decay": 0.0,
            "train.gradient_clip": 0.5,
        },
    )
    limits, clip = [], loop._clip_gradients
    monkeypatch.setattr(loop, "_clip_gradients", lambda task, limit: limits.append(limit) or clip(task, limit))
    run_dir = train_and_export(config, console=console)
    lines = read_metrics(run_dir / "metrics.jsonl")
    assert limits == [0.5] * 6
    assert [line["resolution"] for line in lines] == [8, 8, 8, 16, 16, 16]
    assert [line["learning_rate_factor"] for line in lines] == [0, 0, 0, 1, 1, 1]
    start = build_generator(config).state_dict()["field.network.0.weight"]
    halfway = load_file(run_dir / "checkpoints/step-000003.safetensors")["generator.field.network.0.weight"]
    end = final_tensors(run_dir)["generator.field.network.0.weight"]
    assert torch.equal(start, halfway) and not torch.equal(start, end)


@pytest.mark.parametrize(("limit", "after"), [(None, 5.0), (10.0, 5.0), (0.5, 0.5)])
def test_gradients_are_clipped_to_a_norm_and_their_norm_before_is_told(limit, after):
    weights = [torch.zeros(1, requires_grad=True), torch.zeros(2, requires_grad=True)]
    weights[0].grad, weights[1].grad = torch.tensor([3.0]), torch.tensor([0.0, 4.0])
    plain = SimpleNamespace(optimizer=torch.optim.Adam([{"params": [value]} for value in weights]), lora=None)
    norm, largest = loop._clip_gradients(plain, limit)
    assert norm == largest == 5.0
    assert torch.cat([value.grad for value in weights]).norm() == pytest.approx(after, rel=1e-5)


def test_a_retry_slows_both_networks_and_a_schedule_the_generator_alone():
    def optimizer(rate):
        return torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=rate)

    both = SimpleNamespace(optimizer=optimizer(0.1), lora=SimpleNamespace(optimizer=optimizer(0.01)))
    both.optimizer.param_groups[0]["base_lr"] = 0.1
    for _step in range(2):  # not once more in every step
        loop._set_learning_rates(both, factor=0.5 * 0.25, slower=0.25)
        assert both.optimizer.param_groups[0]["lr"] == pytest.approx(0.0125)
        assert both.lora.optimizer.param_groups[0]["lr"] == pytest.approx(0.0025)


def test_the_report_of_a_run_contains_its_images(configure, console):
    run_dir = train_and_export(configure(), console=console)
    text = (run_dir / "report.html").read_text()
    assert "data:video/mp4" in text and "data:image/jpeg" in text and 'id="model"' in text and "<svg" in text
    assert len(text) < 10 * 2**20
    assert "6 of 6 steps" in text and "interrupted" not in text
    assert json.loads((run_dir / "summary.json").read_text())["mesh"]["faces"] > 100
    assert np.isfinite([line["grad_norm"] for line in read_metrics(run_dir / "metrics.jsonl")]).all()


@pytest.mark.parametrize(("started", "program"), [("launch.py", "python launch.py"), ("/venv/bin/nfsd3d", "nfsd3d")])
def test_the_resume_command_names_the_program_that_was_started(monkeypatch, started, program):
    monkeypatch.setattr("sys.argv", [started, "prompt=a red cube"])
    assert outcome.resume_command(Path("my runs")) == f"{program} --resume 'my runs'"
