"""Callbacks of a training run: what they see, and what becomes of a run when one fails."""

import pytest
import torch
from tiny_runs import OFF, final_tensors

import nfsd3d
from nfsd3d.callbacks.dispatch import CallbackFailed
from nfsd3d.config.compose import Composition
from nfsd3d.errors import InputError, RunFailed
from nfsd3d.runs import checkpoints
from nfsd3d.runs.metrics import read_metrics
from nfsd3d.runs.summary import read_summary
from nfsd3d.train import divergence
from nfsd3d.train.run import train_and_export

pytestmark = pytest.mark.usefixtures("tiny_prior")


class Recorder(nfsd3d.Callback):
    """Keeps the names of its calls, and copies of what it is given."""

    def __init__(self):
        self.calls, self.steps, self.metrics, self.previews, self.saved, self.summaries = [], [], {}, {}, [], []

    def on_start(self, run):
        self.calls.append("start")
        self.run = run

    def on_step(self, event):
        self.calls.append("step")
        tensors = event.tensors
        self.steps.append((event.step, event.steps, event.metrics, tensors))
        assert not any(
            value.requires_grad
            for value in (*vars(tensors).values(), *vars(tensors.view).values())
            if isinstance(value, torch.Tensor)
        )

    def on_metrics(self, step, metrics):
        self.calls.append("metrics")
        self.metrics[step] = dict(metrics)

    def on_preview(self, step, image, path):
        self.calls.append("preview")
        self.previews[step] = image, path

    def on_checkpoint(self, step, path):
        self.calls.append("checkpoint")
        self.saved.append((step, path.name))

    def on_rollback(self, step, reason):
        self.calls.append(f"rollback to {step}: {reason}")

    def on_end(self, summary):
        self.calls.append("end")
        self.summaries.append(summary)


def test_a_callback_sees_the_steps_of_a_run(configure, console):
    seen = Recorder()
    config = configure(**OFF)
    run_dir = train_and_export(config, console=console, callbacks=[seen])
    assert (seen.run.directory, seen.run.finished) == (run_dir, 0)
    assert [(step, of) for step, of, *_ in seen.steps] == [(step, 6) for step in range(1, 7)]
    assert list(seen.metrics) == [2, 4, 6] and list(seen.previews) == [3, 6]
    assert [{"step": step, **numbers} for step, numbers in seen.metrics.items()] == read_metrics(
        run_dir / "metrics.jsonl"
    )
    assert seen.saved == [(2, "step-000002.json"), (4, "step-000004.json"), (6, "step-000006.json")]
    image, path = seen.previews[3]
    assert image.ndim == 3 and path == run_dir / "previews/step-000003.png" and path.is_file()
    assert seen.calls[0] == "start" and seen.calls[-1] == "end"
    (summary,) = seen.summaries
    assert summary == read_summary(run_dir) and summary["status"] == "done"
    for _, _, metrics, tensors in seen.steps:
        assert (
            tensors.latents.shape == tensors.gradient.shape == tensors.delta_c.shape == (2, *tensors.latents.shape[1:])
        )
        assert tensors.view.image.shape == (2, 3, 16, 16)
        assert metrics["grad_norm"] == tensors.gradient.flatten(1).norm(dim=1).mean().item()


def test_the_parts_of_a_step_are_the_papers(configure, console):
    """The gradient is w(t)(δ_D + s δ_C), and with δ_D the method's own formula (2310.17590, eq. 8)."""
    seen = Recorder()
    train_and_export(configure(**OFF), console=console, callbacks=[seen])
    for _, _, _, tensors in seen.steps:
        told = tensors.predictions
        assert torch.equal(tensors.delta_c, told.cond - told.uncond)
        late = (tensors.times >= told.threshold)[:, None, None, None]
        delta_d = (told.uncond - told.neg).where(late, told.uncond)
        torch.testing.assert_close(tensors.rest, delta_d, atol=1e-5, rtol=1e-4)
        whole = tensors.weight * (tensors.rest + tensors.guidance_scale * tensors.delta_c)
        torch.testing.assert_close(tensors.gradient, whole)


def test_a_run_is_the_same_with_a_callback(configure, console, tmp_path):
    runs = {
        name: train_and_export(configure(**OFF, run_dir=tmp_path / name), console=console, callbacks=callbacks)
        for name, callbacks in (("without", []), ("with", [Recorder()]))
    }
    expected = final_tensors(runs["without"])
    assert all(torch.equal(value, expected[name]) for name, value in final_tensors(runs["with"]).items())


class Failing(nfsd3d.Callback):
    """Fails at a step."""

    def __init__(self, error, step=3):
        self._error, self._step = error, step

    def on_step(self, event):
        if event.step == self._step:
            raise self._error


def test_an_error_of_a_callback_ends_the_run_with_a_checkpoint(configure, console):
    seen = Recorder()
    config = configure(**OFF)
    with pytest.raises(RunFailed, match=r"Failing\.on_step: ZeroDivisionError: by zero") as failed:
        train_and_export(config, console=console, callbacks=[seen, Failing(ZeroDivisionError("by zero"))])
    causes = []
    error = failed.value
    while (error := error.__cause__) is not None:
        causes.append(type(error))
    assert ZeroDivisionError in causes
    (summary,) = seen.summaries
    assert summary["status"] == "failed" and "by zero" in summary["reason"] and summary["steps"] == 3
    found = checkpoints.newest(seen.run.directory)
    assert found.steps == 3
    run_dir = train_and_export(config, resume=seen.run.directory, console=console)
    expected = final_tensors(train_and_export(configure(**OFF, run_dir=run_dir.parent / "b"), console=console))
    assert all(torch.equal(value, expected[name]) for name, value in final_tensors(run_dir).items())


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(2, "No such file", "notes.txt"), ConnectionError("far"), RunFailed("inner"), SystemExit(3)],
)
def test_errors_of_every_kind_are_named_and_lose_nothing(configure, console, error):
    seen = Recorder()
    with pytest.raises(CallbackFailed, match=r"Failing\.on_step: .*; go on with: .*--resume") as failed:
        train_and_export(configure(**OFF), console=console, callbacks=[seen, Failing(error)])
    assert failed.value.__cause__ is error
    assert checkpoints.newest(seen.run.directory).steps == 3 and read_summary(seen.run.directory)["status"] == "failed"


def test_a_finished_run_keeps_its_summary_if_a_callback_does_not_start(configure, console):
    config = configure(**OFF | {"export.report": True})
    run_dir = train_and_export(config, console=console)
    before = (run_dir / "summary.json").read_bytes(), (run_dir / "report.html").read_bytes()

    class Refusing(nfsd3d.Callback):
        def on_start(self, run):
            raise ValueError("no server")

    with pytest.raises(CallbackFailed, match="no server"):
        train_and_export(config, resume=run_dir, console=console, callbacks=[Refusing()])
    assert ((run_dir / "summary.json").read_bytes(), (run_dir / "report.html").read_bytes()) == before


def test_a_checkpoint_that_is_asked_for_in_its_own_callback_is_saved_once(configure, console):
    class Greedy(nfsd3d.Callback):
        saves = 0

        def on_start(self, run):
            self.controls = run.controls

        def on_checkpoint(self, step, path):
            self.saves += 1
            self.controls.save()

    greedy = Greedy()
    train_and_export(configure(**OFF), console=console, callbacks=[greedy])
    assert greedy.saves <= 6


@pytest.mark.parametrize("given", [Recorder(), Recorder, [Recorder], [1]])
def test_callbacks_are_a_list_of_objects(given):
    with pytest.raises(TypeError, match="callbacks: give a list"):
        nfsd3d.generate("a red cube", callbacks=given)


def test_an_error_at_the_end_is_only_reported(configure, console, capsys):
    class Late(nfsd3d.Callback):
        def on_end(self, summary):
            raise ValueError("too late")

    seen = Recorder()
    run_dir = train_and_export(configure(**OFF), console=console, callbacks=[Late(), seen])
    assert read_summary(run_dir)["status"] == "done" and seen.calls[-1] == "end"
    assert "Late.on_end: ValueError: too late" in capsys.readouterr().err


def test_a_callback_that_did_not_start_does_not_end(configure, console, tmp_path):
    class Refusing(nfsd3d.Callback):
        def on_start(self, run):
            raise KeyError("no")

    seen = Recorder()
    with pytest.raises(RunFailed, match=r"Refusing\.on_start: KeyError"):
        train_and_export(configure(**OFF), console=console, callbacks=[Refusing(), seen])
    assert seen.calls == []
    with pytest.raises(InputError):  # before anything is started
        train_and_export(configure(**OFF), resume=tmp_path / "none", console=console, callbacks=[seen])
    assert seen.calls == []


def test_a_callback_learns_of_a_divergence(configure, console, monkeypatch):
    """The run goes back to its last sound checkpoint, and repeats the later steps."""
    original, left = divergence.Watchdog.observe, [1]

    def observe(self, step, **numbers):
        if step == 5 and left:
            left.pop()
            return divergence.Diverged("the scene is empty")
        return original(self, step, **numbers)

    monkeypatch.setattr(divergence.Watchdog, "observe", observe)
    seen = Recorder()
    diverged = configure().to_dict()["train"]["diverged"] | {"retries": 1}
    run_dir = train_and_export(configure(**OFF, **{"train.diverged": diverged}), console=console, callbacks=[seen])
    assert read_summary(run_dir)["retries"] == 1
    (back,) = [call for call in seen.calls if call.startswith("rollback")]
    assert back.startswith("rollback to 4: diverged: the scene is empty; retry 1 of 1")
    assert [step for step, *_ in seen.steps] == [1, 2, 3, 4, 5, 6]


def test_generate_takes_callbacks(configure, tmp_path, monkeypatch):
    seen = Recorder()
    tiny = Composition(configure(**OFF, run_dir=tmp_path / "run"), {}, [])
    monkeypatch.setattr("nfsd3d.api.compose_experiment", lambda *arguments: tiny)
    run = nfsd3d.generate("a red cube", callbacks=[seen])
    assert run.step == 6 and seen.calls[-1] == "end"


def test_the_error_names_the_callback():
    from nfsd3d.callbacks.dispatch import Callbacks

    class Mine(nfsd3d.Callback):
        def on_idle(self):
            raise LookupError("lost")

    with pytest.raises(CallbackFailed, match=r"^Mine.on_idle: LookupError: lost$"):
        Callbacks([Mine()]).idle()
