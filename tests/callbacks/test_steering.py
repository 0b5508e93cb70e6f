"""Steering of a run while it trains."""

import itertools
import signal
import threading
import time

import numpy as np
import pytest
import torch
from tiny_runs import OFF, final_tensors

import nfsd3d
from nfsd3d.callbacks.steering import Controls, Steering
from nfsd3d.errors import InputError, RunFailed
from nfsd3d.runs import checkpoints
from nfsd3d.runs.metrics import read_metrics
from nfsd3d.runs.summary import read_summary
from nfsd3d.train.interrupts import Interrupted
from nfsd3d.train.plan import plan_at
from nfsd3d.train.run import train_and_export

pytestmark = pytest.mark.usefixtures("tiny_prior")


class At(nfsd3d.Callback):
    """Does something after some of the steps."""

    def __init__(self, actions):
        self._actions, self.seen, self.idle = actions, [], 0

    def on_start(self, run):
        self.run, self.controls = run, run.controls

    def on_step(self, event):
        self.seen.append((event.step, event.tensors.guidance_scale, event.tensors.times))
        for action in self._actions.get(event.step, ()):
            action(self.controls)

    def on_idle(self):
        self.idle += 1


def steer(**changes):
    return [lambda controls: controls.steer(**changes)]


def test_a_run_is_steered_and_says_so(configure, console):
    at = At(
        {2: steer(guidance_scale=30.0, t_min=0.5, t_max=0.6), 4: steer(guidance_scale=None, learning_rate_factor=0.0)}
    )
    config = configure(**OFF)
    run_dir = train_and_export(config, console=console, callbacks=[at])
    assert [scale for _, scale, _ in at.seen] == [7.5, 7.5, 30.0, 30.0, 3.0, 3.0]  # the schedule falls to 3
    assert all(((times >= 0.5 * 100 - 1) & (times <= 0.6 * 100)).all() for step, _, times in at.seen if step > 2)
    changed = [
        {"step": 2, "guidance_scale": 30.0, "learning_rate_factor": 1.0, "t_min": 0.5, "t_max": 0.6},
        {"step": 4, "guidance_scale": None, "learning_rate_factor": 0.0, "t_min": 0.5, "t_max": 0.6},
    ]
    assert read_summary(run_dir)["steered"] == changed
    lines = {line["step"]: line for line in read_metrics(run_dir / "metrics.jsonl")}
    assert list(lines) == [2, 3, 4, 5, 6]  # each change has a line
    assert [lines[step].get("steered") for step in (2, 3, 5)] == [None, 1, 2]
    assert (lines[3]["guidance_scale"], lines[3]["t_min"], lines[3]["t_max"]) == (30.0, 0.5, 0.6)
    assert lines[6]["learning_rate_factor"] == 0
    fixed = {step: checkpoints.at_step(run_dir, step).tensors for step in (4, 6)}
    parameters = [name for name in fixed[6] if name.startswith("generator.field")]
    assert parameters and all(torch.equal(fixed[4][name], fixed[6][name]) for name in parameters)
    assert "steered" not in read_summary(train_and_export(configure(**OFF, run_dir=run_dir.parent / "b")))


def test_a_steered_run_that_was_interrupted_resumes_as_it_was_steered(configure, console, tmp_path):
    actions = {2: steer(guidance_scale=30.0), 4: steer(t_max=0.5)}
    whole = train_and_export(configure(**OFF, run_dir=tmp_path / "a"), console=console, callbacks=[At(actions)])
    stopping = {**actions, 3: [Controls.stop]}
    config = configure(**OFF, run_dir=tmp_path / "b")
    with pytest.raises(Interrupted, match=r"after step 3.*--resume"):
        train_and_export(config, console=console, callbacks=[At(stopping)])
    assert read_summary(tmp_path / "b")["status"] == "interrupted"
    resumed = train_and_export(config, resume=tmp_path / "b", console=console, callbacks=[At(actions)])
    expected = final_tensors(whole)
    assert all(torch.equal(value, expected[name]) for name, value in final_tensors(resumed).items())
    assert read_summary(resumed)["steered"] == read_summary(whole)["steered"]
    alone = train_and_export(configure(**OFF, run_dir=tmp_path / "c"), console=console)
    assert not all(torch.equal(value, expected[name]) for name, value in final_tensors(alone).items())


def test_a_resumed_run_is_steered_without_a_callback_too(configure, console, tmp_path):
    config = configure(**OFF, run_dir=tmp_path / "b")
    with pytest.raises(Interrupted):
        stopping = {2: [*steer(guidance_scale=30.0)], 3: [Controls.stop]}
        train_and_export(config, console=console, callbacks=[At(stopping)])
    train_and_export(config, resume=tmp_path / "b", console=console)
    lines = read_metrics(tmp_path / "b" / "metrics.jsonl")
    assert [line["guidance_scale"] for line in lines if line["step"] > 3] == [30.0, 30.0]


def test_a_pause_takes_steps_one_by_one_and_does_not_count(configure, console):
    """Another thread pauses, lets one step pass, saves, and lets the run go on."""
    paused, done = threading.Event(), []

    def hold(controls):
        controls.pause()
        paused.set()

    at = At({2: [hold]})

    def other():
        assert paused.wait(20)
        for wait, action in ((0.4, Controls.step), (0.4, Controls.save), (0.4, Controls.resume)):
            time.sleep(wait)
            done.append((len(at.seen), at.controls.paused))
            action(at.controls)

    thread = threading.Thread(target=other)
    thread.start()
    begin = time.monotonic()
    run_dir = train_and_export(configure(**OFF, **{"train.keep_checkpoints": 9}), console=console, callbacks=[at])
    elapsed = time.monotonic() - begin
    thread.join()
    assert done == [(2, True), (3, True), (3, True)] and at.idle > 10
    assert {step_of.stem for step_of in checkpoints.list_checkpoints(run_dir / "checkpoints")} >= {"step-000003"}
    assert read_summary(run_dir)["seconds"] < elapsed - 1.0
    speeds = [line["steps_per_second"] for line in read_metrics(run_dir / "metrics.jsonl")]
    assert min(speeds) > 6 / elapsed
    assert read_summary(run_dir)["status"] == "done"


def test_a_paused_run_stops(configure, console):
    at = At({2: [Controls.pause, lambda controls: threading.Timer(0.3, controls.stop).start()]})
    with pytest.raises(Interrupted):
        train_and_export(configure(**OFF), console=console, callbacks=[at])
    assert checkpoints.newest(at.run.directory).steps == 2


WRONG = [
    ({"guidance_scale": -1.0}, "guidance_scale=-1.0: cannot be steered to"),
    ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
    ({"guidance_scale": "7"}, "guidance_scale='7'"),
    ({"learning_rate_factor": None}, "learning_rate_factor=None"),
    ({"guidance_scale": 10**400}, "guidance_scale=1000"),
    ({"guidance_scale": True}, "guidance_scale=True"),
    ({"t_min": 1.5}, "are fractions of training steps"),
    ({"t_min": 0.7, "t_max": 0.3}, "t_min=0.7: is above t_max=0.3"),
]


def test_every_kind_of_number_is_a_float():
    assert Steering(guidance_scale=np.float32(3), learning_rate_factor=10**30).record(4) == {
        **{"step": 4, "guidance_scale": 3.0, "learning_rate_factor": 1e30, "t_min": None, "t_max": None}
    }


def test_a_divergence_keeps_the_steering(configure, console):
    """A resumed run would diverge again, and says that it is steered."""
    at = At({3: steer(guidance_scale=1e38, learning_rate_factor=1e20)})
    diverged = configure().to_dict()["train"]["diverged"] | {"retries": 1}
    with pytest.raises(RunFailed, match="and as it was steered"):
        train_and_export(configure(**OFF, **{"train.diverged": diverged}), console=console, callbacks=[at])
    assert [change["guidance_scale"] for change in read_summary(at.run.directory)["steered"]] == [1e38]


def test_a_run_that_is_stopped_in_its_last_step_or_its_export_is_interrupted(configure, console):
    at = At({6: [Controls.stop]})
    handler = signal.getsignal(signal.SIGINT)
    called = []
    signal.signal(signal.SIGINT, lambda *_: called.append(1))
    try:
        with pytest.raises(Interrupted):
            train_and_export(configure(), console=console, callbacks=[at])
    finally:
        signal.signal(signal.SIGINT, handler)
    assert read_summary(at.run.directory)["steps"] == 6 and not called  # no signal came


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_no_run_can_have_is_refused(changes, message):
    controls = Controls()
    controls.steer(guidance_scale=3.0)
    with pytest.raises(InputError, match=message):
        controls.steer(**changes)
    assert controls.steering == Steering(guidance_scale=3.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t_max": 0.01}, r"t_min=0\.\d+: is not below t_max=0.01 at 0.33 of training"),
        ({"t_min": 1.0}, r"t_min=1: is not below t_max=0.8 at 0.33 of training"),
    ],
)
def test_what_the_rest_of_this_run_cannot_have_is_refused(configure, console, changes, message):
    at = At({2: steer(**changes)})
    with pytest.raises(RunFailed, match=rf"At\.on_step: {message}"):
        train_and_export(configure(**OFF), console=console, callbacks=[at])
    assert checkpoints.newest(at.run.directory).steps == 2


def test_what_only_the_beginning_could_not_have_is_allowed(configure, console):
    """The schedule of t_min begins at 0.3, and has fallen by then."""
    at = At({4: steer(t_max=0.2)})
    train_and_export(configure(**OFF), console=console, callbacks=[at])
    assert all((times <= 20).all() for step, _, times in at.seen if step > 4)


def test_a_plan_is_steered(base_config):
    plan = plan_at(base_config.train, 0.5)
    steered = plan.steered(Steering(learning_rate_factor=0.5, t_max=0.9))
    assert steered.learning_rate_factor == plan.learning_rate_factor / 2
    assert (steered.t_min, steered.t_max, steered.guidance_scale) == (plan.t_min, 0.9, None)
    assert plan.steered(Steering()) == plan


def test_waiting_calls_idle_until_it_may_go_on():
    controls, calls = Controls(), itertools.count()
    controls.pause()

    def idle():
        if next(calls) == 3:
            controls.resume()

    assert controls.wait(idle, lambda: False) is False and next(calls) == 4
    controls.pause()
    assert controls.wait(lambda: pytest.fail("a signal ends the wait"), lambda: True) is False
    controls.save()
    assert controls.wait(lambda: None, lambda: True) is True
