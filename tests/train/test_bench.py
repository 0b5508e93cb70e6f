"""The measurements: that they measure the real thing and add up. Their numbers are nobody's business here."""

import json

import pytest
import torch

from nfsd3d import bench, bench_command
from nfsd3d.errors import InputError
from nfsd3d.field.hashgrid import HashGridSpec
from nfsd3d.train.build import build_generator, build_parts, camera_ranges

SPEC = HashGridSpec(levels=2, features=2, log2_entries=6, base_resolution=3, growth=2.0)


def test_encodings_are_timed_side_by_side():
    rounds = []
    implementations = bench.encoding_implementations(SPEC, compiled=False)
    timings = bench.bench_encoding(implementations, torch.rand(300, 3), rounds=2, on_round=lambda: rounds.append(1))
    assert [timing.name for timing in timings] == ["embedding_bag", "numba"]
    assert all(timing.forward > 0 and timing.training > 0 for timing in timings)
    assert timings[1].forward_ratio == timings[1].training_ratio == 1
    assert timings[0].training_ratio == pytest.approx(timings[0].training / timings[1].training)
    assert len(rounds) == 3


def test_an_encoding_that_computes_something_else_is_not_timed():
    implementations = bench.encoding_implementations(SPEC, compiled=False)
    with torch.no_grad():
        implementations["numba"].table[0] += 1
    with pytest.raises(AssertionError, match="numba computes something else"):
        bench.bench_encoding(implementations, torch.rand(300, 3), rounds=1)


def test_positions_are_those_of_a_first_step(configure):
    config = configure()
    positions = bench.demo_positions(build_generator(config), camera_ranges(config.cameras), 2, 16)
    assert positions.shape[0] > 500
    assert (positions - 0.5).abs().max() < 0.5


@pytest.mark.usefixtures("tiny_prior")
def test_the_parts_of_a_step_add_up(configure):
    config = configure(**{"train.t_min": 0.5, "train.t_max": 0.98, "distill.method": "sds"})
    parts = build_parts(config)
    before = [parameter.detach().clone() for parameter in parts.generator.parameters()]
    steps = []
    timing = bench.bench_step(parts, config.train, steps=3, warmup=1, on_step=lambda: steps.append(1))
    assert len(steps) == 4
    assert list(timing.shares) == ["occupancy", "render", "encode", "UNet", "backward", "optimiser", "rest"]
    assert sum(timing.shares.values()) == pytest.approx(1)
    assert min(timing.shares.values()) > 0
    assert sum(timing.milliseconds.values()) == pytest.approx(1000 / timing.steps_per_second)
    assert timing.evaluations == 4  # two views, two branches
    assert timing.samples_per_ray > 1
    assert any(not torch.equal(a, b) for a, b in zip(before, parts.generator.parameters(), strict=True))
    assert not {"render", "update"} & vars(parts.generator).keys()  # nothing of the stopwatch stays
    assert not {"encode", "predict_eps"} & vars(parts.prior).keys()


def test_the_command_writes_numbers_and_prints_tables(tmp_path, capsys):
    path = tmp_path / "bench.json"
    arguments = ["--only", "encoding", "--no-compile", "--points", "300", "--rounds", "1", "--threads", "1"]
    threads = torch.get_num_threads()
    try:
        assert bench_command.main([*arguments, "--json", str(path)]) == 0
    finally:
        torch.set_num_threads(threads)
    record = json.loads(path.read_text())
    assert record["threads"] == 1
    assert record["encoding"]["points"] == 300
    assert [row["name"] for row in record["encoding"]["implementations"]] == ["embedding_bag", "numba"]
    assert "numba" in capsys.readouterr().out


def test_a_step_without_the_embedded_model_is_an_input_error(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_command, "EMBEDDED", tmp_path / "absent")
    with pytest.raises(InputError, match="no embedded model"):
        bench_command.main(["--only", "step"])


def test_step_table_shows_every_part():
    timing = bench.StepTiming({"render": 30.0, "UNet": 70.0}, {"render": 0.3, "UNet": 0.7}, 10.0, 6.1, 10.5)
    table = bench_command.step_table(timing)
    assert table.row_count == 2
    assert "10.00 steps/s" in str(table.title)
