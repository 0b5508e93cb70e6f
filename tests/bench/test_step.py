"""The benchmarks of kernels and steps: results are compared, and the parts of a step add up."""

import json
from dataclasses import replace

import pytest
import torch

from nfsd3d.bench import kernels
from nfsd3d.bench.step import PARTS, StepTiming, bench_step
from nfsd3d.bench.tables import step_table
from nfsd3d.cli import bench as bench_command
from nfsd3d.errors import InputError
from nfsd3d.generators.nerf.field import HashGridField
from nfsd3d.generators.nerf.hashgrid.encoding import hash_encoding
from nfsd3d.generators.nerf.hashgrid.spec import HashGridSpec
from nfsd3d.train.build import build_generator, build_parts

SPEC = HashGridSpec(levels=2, features=2, log2_entries=6, base_resolution=3, growth=2.0)


CPU = torch.device("cpu")


def encoding_contenders():
    return kernels.encoding_contenders(kernels.encodings(SPEC, CPU, compiled=False), torch.rand(300, 3))


def test_encodings_are_timed_side_by_side():
    rounds = []
    timings = kernels.bench_kernel(encoding_contenders(), CPU, rounds=2, on_round=lambda: rounds.append(1))
    assert [timing.name for timing in timings] == ["embedding_bag", "numba"]
    assert all(timing.forward > 0 and timing.training > 0 for timing in timings)
    assert timings[1].forward_ratio == timings[1].training_ratio == 1
    assert timings[0].training_ratio == pytest.approx(timings[0].training / timings[1].training)
    assert len(rounds) == 3


def test_float16_tables_are_compared_with_their_own_tolerance(triton_interpreter):
    encodings = kernels.encodings(SPEC, CPU, compiled=False)
    encodings[kernels.HALF] = hash_encoding(replace(SPEC, precision="float16"), "triton")
    encodings[kernels.HALF].load_state_dict(encodings["numba"].state_dict())
    timings = kernels.bench_kernel(kernels.encoding_contenders(encodings, torch.rand(300, 3)), CPU, rounds=1)
    assert kernels.HALF in [timing.name for timing in timings]


def test_an_encoding_with_wrong_results_is_not_timed():
    encodings = kernels.encodings(SPEC, CPU, compiled=False)
    with torch.no_grad():
        encodings["numba"].table[0] += 1
    with pytest.raises(AssertionError, match="numba computes something else"):
        kernels.bench_kernel(kernels.encoding_contenders(encodings, torch.rand(300, 3)), CPU, rounds=1)


def test_a_contender_without_tolerance_is_timed_but_not_compared():
    contenders = {
        "torch": kernels.Contender(lambda: torch.ones(3)),
        "nerfacc": kernels.Contender(lambda: torch.zeros(3)),
    }
    with pytest.raises(AssertionError, match="nerfacc computes something else"):
        kernels.bench_kernel(contenders, CPU, rounds=1)
    contenders["nerfacc"] = kernels.Contender(lambda: torch.zeros(4), tolerance=None)
    first, second = kernels.bench_kernel(contenders, CPU, rounds=1)
    assert first.forward_ratio == 1
    assert first.training is second.training is second.training_ratio is None


def test_a_scene_is_that_of_a_first_step(configure):
    config = configure()
    generator = build_generator(config)
    scene = kernels.demo_scene(generator, config.cameras, 2, 16)
    assert scene.positions.shape[0] > 500
    assert (scene.positions - 0.5).abs().max() < 0.5
    assert scene.density.shape == scene.samples.t_mids.shape
    assert scene.samples.n_rays == len(scene.rays) == 2 * 16 * 16

    timings = kernels.bench_kernel(kernels.marching_contenders(scene), CPU, rounds=1)
    assert [timing.name for timing in timings] == ["torch", "numba"]
    assert all(timing.training is None for timing in timings)
    (network,) = kernels.network_contenders(generator.field, scene.positions).values()
    assert network.forward().shape == (scene.density.shape[0], 4)
    hidden, output = generator.field.network.parameters()
    compared = 1000 if scene.density.shape[0] > 1000 else scene.density.shape[0]
    assert network.training().shape == (compared * hidden.shape[1] + hidden.numel() + output.numel(),)
    (compositing,) = kernels.compositing_contenders(scene).values()
    assert compositing.forward().shape == (512, 6)
    assert compositing.training().shape == (scene.density.shape[0] * 4,)


@pytest.mark.gpu
def test_every_kernel_is_timed_on_a_gpu(configure):
    pytest.importorskip("triton")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    config = configure(
        **{"machine.name": "cuda", "machine.device": "cuda", "backend.field": "triton", "backend.sampler": "triton"}
    )
    generator = build_generator(config)
    scene = kernels.demo_scene(generator, config.cameras, 2, 16)
    encodings = kernels.encodings(SPEC, generator.device, compiled=True)
    for contenders in (
        kernels.encoding_contenders(encodings, scene.positions),
        kernels.network_contenders(generator.field, scene.positions),
        kernels.marching_contenders(scene),
        kernels.compositing_contenders(scene),
    ):
        timings = {timing.name: timing for timing in kernels.bench_kernel(contenders, generator.device, rounds=2)}
        assert timings["triton"].forward_ratio == 1
        assert len(timings) >= 2


@pytest.mark.usefixtures("tiny_prior")
def test_the_parts_of_a_step_add_up(configure):
    config = configure(**{"train.t_min": 0.5, "train.t_max": 0.98, "distill.method": "sds"})
    parts = build_parts(config)
    before = [parameter.detach().clone() for parameter in parts.generator.parameters()]
    steps = []
    timing = bench_step(parts, config.train, steps=3, warmup=1, on_step=lambda: steps.append(1))
    assert len(steps) == 4
    assert list(timing.shares) == [*PARTS, "rest"]
    assert sum(timing.shares.values()) == pytest.approx(1)
    assert min(timing.shares.values()) > 0
    assert sum(timing.milliseconds.values()) == pytest.approx(1000 / timing.steps_per_second)
    assert timing.evaluations == 4  # two views, two branches
    assert timing.samples_per_ray > 1
    assert any(not torch.equal(a, b) for a, b in zip(before, parts.generator.parameters(), strict=True))
    assert not {"render", "update"} & vars(parts.generator).keys()  # nothing of the stopwatch stays
    assert not {"encode", "predict_eps"} & vars(parts.prior).keys()


@pytest.mark.parametrize(("kernel", "unit"), [("encoding", "points"), ("marching", "rays"), ("rasterizing", "pixels")])
def test_the_command_writes_numbers_and_prints_tables(kernel, unit, tmp_path, capsys):
    path = tmp_path / "bench.json"
    arguments = ["--machine", "cpu", "--only", kernel, "--no-compile", "--rounds", "1", "--threads", "1"]
    arguments += ["--points", "300"] if kernel == "encoding" else []
    threads = torch.get_num_threads()
    try:
        assert bench_command.main([*arguments, "--json", str(path)]) == 0
    finally:
        torch.set_num_threads(threads)
    record = json.loads(path.read_text())
    assert record["threads"] == 1
    assert record["device"] == "cpu"
    assert kernel != "encoding" or record["encoding"]["points"] == 300
    names = [row["name"] for row in record[kernel]["implementations"]]
    assert names == ["embedding_bag" if kernel == "encoding" else "torch", "numba"]
    printed = capsys.readouterr().out
    assert f"{kernel}, {record[kernel][unit]:,} {unit}" in printed
    assert "numba" in printed


@pytest.mark.usefixtures("triton_interpreter")
def test_the_networks_of_a_gpu_agree(monkeypatch):
    """Triton's kernel, with tensor cores and without, as its interpreter has it on a CPU."""
    field = HashGridField(SPEC, "triton", radius=1.0, hidden_width=8, hidden_layers=1, blob_scale=1.0, blob_std=1.0)
    monkeypatch.setattr(kernels, "_network_backends", lambda device: ["triton"])
    contenders = kernels.network_contenders(field, torch.rand(300, 3))
    timings = kernels.bench_kernel(contenders, CPU, rounds=1)
    assert [timing.name for timing in timings] == ["torch", "triton", "triton, float32"]
    assert all(timing.forward > 0 and timing.training > 0 for timing in timings)


def test_a_cpu_has_no_second_implementation_of_the_network(capsys):
    arguments = ["--machine", "cpu", "--only", "network", "--rounds", "1", "--threads", "1"]
    threads = torch.get_num_threads()
    try:
        assert bench_command.main(arguments) == 0
    finally:
        torch.set_num_threads(threads)
    assert "network: cpu has no other implementation than the reference" in capsys.readouterr().out


def test_options_that_belong_to_a_prior_need_one():
    for option in (["--method", "nfsd"], ["--weights", "random"], ["--set", "train.steps=3"], ["--config", "lowmem"]):
        with pytest.raises(InputError, match=rf"{' '.join(option)}: has no meaning without --prior; add --prior"):
            bench_command.main(option)


def test_triton_is_skipped_where_it_cannot_be_used(monkeypatch):
    assert kernels._fast("cpu") == ["numba"]
    monkeypatch.setattr(kernels, "triton_obstacle", lambda: None)
    assert kernels._fast("cuda") == ["triton"]
    monkeypatch.setattr(kernels, "triton_obstacle", lambda: "too old a GPU")
    assert kernels._fast("cuda") == []


def test_a_step_without_the_embedded_model_is_an_input_error(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_command, "EMBEDDED", tmp_path / "absent")
    with pytest.raises(InputError, match="no embedded model"):
        bench_command.main(["--only", "step"])


def test_step_table_shows_every_part():
    timing = StepTiming({"render": 30.0, "UNet": 70.0}, {"render": 0.3, "UNet": 0.7}, 10.0, 6.1, 10.5)
    table = step_table(timing)
    assert table.row_count == 2
    assert "10.00 steps/s" in str(table.title)
