"""metrics.jsonl and TensorBoard."""

import json

import pytest

from nfsd3d.runs.metrics import MetricsWriter, read_metrics, series


def test_lines_are_on_disk_at_once(tmp_path):
    with MetricsWriter(tmp_path, 0, tensorboard=False) as writer:
        writer.write(4, {"opacity": 0.25})
        assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 4, "opacity": 0.25}]


def test_numbers_that_json_cannot_hold_are_null(tmp_path):
    with MetricsWriter(tmp_path, 0, tensorboard=False) as writer:
        writer.write(0, {"grad_norm": float("nan"), "opacity": float("inf")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 0, "grad_norm": None, "opacity": None}


def test_a_resumed_run_replaces_what_it_does_again(tmp_path):
    with MetricsWriter(tmp_path, 0, tensorboard=False) as writer:
        for step in range(6):
            writer.write(step, {"opacity": 0.0})
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "opac')  # killed while writing
    with MetricsWriter(tmp_path, 3, tensorboard=False) as writer:
        writer.write(4, {"opacity": 1.0})
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["opacity"]) for line in lines] == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1)]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsWriter(tmp_path, 0, tensorboard=True) as writer:
        writer.write(7, {"opacity": 0.25})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (scalar,) = events.Scalars("opacity")
    assert (scalar.step, scalar.value) == (7, pytest.approx(0.25))


def test_names_of_version_0_1_are_read_as_current_ones(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written = [{"step": 2, "particle_loss": 0.5}, {"step": 4, "lora_loss": 0.25}, {"step": 6, "lora_loss": None}]
    path.write_text("".join(json.dumps(line) + "\n" for line in written))
    lines = read_metrics(path)
    assert lines[0] == {"step": 2, "lora_loss": 0.5}
    assert series(lines, "lora_loss") == [(2, 0.5), (4, 0.25)]
