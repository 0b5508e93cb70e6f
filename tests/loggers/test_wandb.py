"""W&B offline, for real."""

import json
import os
import time
from pathlib import Path

import pytest
from tiny_runs import OFF

from nfsd3d.callbacks.callback import Callback
from nfsd3d.callbacks.steering import Controls
from nfsd3d.runs import identity
from nfsd3d.runs.metrics import read_metrics
from nfsd3d.train.interrupts import Interrupted
from nfsd3d.train.run import train_and_export

pytest.importorskip("wandb")

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("tiny_prior")]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))


BLOCK = 2**15
HEADER = 7  # bytes: of a file, and of each part of a record: checksum (4), length (2), kind (1)
FULL, LAST = 1, 4


def contents(path):
    """The records in a file of W&B: a log as LevelDB writes it, in blocks, with records in parts."""
    data, position, record = path.read_bytes(), HEADER, b""
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        record += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (FULL, LAST):
            yield record
            record = b""


def records(run_dir):
    """The records of all of W&B's files of a run, as protocol buffers.

    Waits for the last record: on a busy machine W&B 0.31 writes on for seconds after ``finish`` has returned.
    """
    end = time.monotonic() + 60
    found = []
    for path in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb")):
        while not (whole := parsed(path)) or whole[-1].WhichOneof("record_type") != "exit":
            assert time.monotonic() < end, f"{path}: has no end"
            time.sleep(0.1)
        found += whole
    return found


def parsed(path):
    from wandb.proto import wandb_internal_pb2

    return [wandb_internal_pb2.Record.FromString(content) for content in contents(path)]


def logged(run_dir):
    """Each record of the history."""
    rows = []
    for record in records(run_dir):
        if record.WhichOneof("record_type") == "history":
            rows.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item})
    return rows


def test_a_run_is_logged(configure, console):
    config = configure(**OFF | {"export.turntable": True}, logger="wandb")
    run_dir = train_and_export(config, console=console)
    rows = logged(run_dir)
    numbers = {row["step"]: row for row in rows if "opacity" in row}
    lines = read_metrics(run_dir / "metrics.jsonl")
    assert list(numbers) == [line["step"] for line in lines]
    for line in lines:
        assert all(numbers[line["step"]][name] == value for name, value in line.items())
    assert [row["step"] for row in rows if "preview" in row] == [3, 6]
    assert any("turntable" in row for row in rows) and any("views" in row for row in rows)
    (run,) = [record.run for record in records(run_dir) if record.WhichOneof("record_type") == "run"][-1:]
    assert (run.run_id, run.project, run.display_name) == (identity.read(run_dir), "nfsd3d", "a red cube")


def test_a_resumed_run_goes_on_under_its_id(configure, console):
    class Stop(Callback):
        def on_start(self, run):
            self.controls: Controls = run.controls

        def on_step(self, event):
            if event.step == 3:
                self.controls.stop()

    config = configure(**OFF, logger="wandb")
    with pytest.raises(Interrupted):
        train_and_export(config, console=console, callbacks=[Stop()])
    run_dir = train_and_export(config, resume=Path(config.run_dir), console=console)
    assert {row["step"] for row in logged(run_dir) if "opacity" in row} == {2, 4, 6}
    ids = {record.run.run_id for record in records(run_dir) if record.WhichOneof("record_type") == "run"}
    assert ids == {identity.read(run_dir)}
