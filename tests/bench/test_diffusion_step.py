"""The benchmark of a step with a full-size prior, here with a narrow one."""

import json

import pytest
import torch

from nfsd3d.bench import diffusion_step as bench_prior
from nfsd3d.bench.baseline import ALPHA, as_baseline
from nfsd3d.bench.flops import arithmetic, device_tflops
from nfsd3d.bench.tables import comparison_tables, comparison_text
from nfsd3d.cli import bench as bench_command
from nfsd3d.errors import InputError
from nfsd3d.prior.architectures import random_prior
from nfsd3d.prior.files.locate import EMBEDDED
from nfsd3d.prior.load_prior import load_prior
from nfsd3d.runs.summary import device_name
from nfsd3d.train.build import build_parts


@pytest.fixture(autouse=True)
def _nothing_is_remembered_of_other_sizes():
    arithmetic.cache_clear()
    yield
    arithmetic.cache_clear()


def test_stages_are_the_recipes_resolutions(configure):
    config = configure(**{"train.resolution": [[0.0, 8], [0.2, 16], [1.0, 32]]})
    assert bench_prior.stages(config.train) == [bench_prior.Stage(8, 0.0, 0.2), bench_prior.Stage(16, 0.2, 1.0)]
    assert bench_prior.stages(configure().train) == [bench_prior.Stage(16, 0.0, 1.0)]
    capped = bench_prior.at_most(config, 12)
    assert capped.train.resolution == [(0.0, 8), (0.2, 12), (1.0, 12)]
    assert bench_prior.at_most(configure(), 12).train.resolution == 12


def test_a_method_against_the_same_with_a_baseline_choices(configure, narrow):
    config = configure(
        **{
            "train.resolution": [[0.0, 8], [0.25, 16]],
            "train.t_min": 0.02,
            "train.t_max": [[0.0, 0.98], [0.25, 0.98], [0.25, 0.1]],  # NFSD needs no eps(neg) then
            "train.batch_size": 1,
            "generator.occupancy_warmup": 0,
        }
    )
    prior = random_prior(narrow, dtype=torch.bfloat16, image_size=64)
    parts = build_parts(config, prior)
    called = []
    steps = dict(steps=2, baseline_steps=1, warmup=1)
    comparison = bench_prior.compare(parts, config, narrow, **steps, on_step=lambda: called.append(1))
    assert len(called) == bench_prior.count_steps(config, **steps) == 10
    assert [t.stage.resolution for t in comparison.ours] == [t.stage.resolution for t in comparison.baseline] == [8, 16]
    assert comparison.ours[1].timing.evaluations == 2 and comparison.baseline[1].timing.evaluations == 3
    assert all(t.timing.evaluations == 3 for t in comparison.baseline)
    for timing in (*comparison.ours, *comparison.baseline):
        assert sum(timing.timing.milliseconds.values()) == pytest.approx(1e3 / timing.timing.steps_per_second)
        assert timing.tflops == pytest.approx(timing.tflop * timing.timing.steps_per_second)
        assert timing.tflop == comparison.counted.step(timing.timing.evaluations, 1)
    assert {parameter.dtype for parameter in prior.denoiser.parameters()} == {torch.float32}  # the baseline's, on a CPU
    assert comparison.device == device_name("cpu")
    for timing in comparison.ours:
        # Nothing is faster than the arithmetic, or the one or the other was measured wrongly.
        assert timing.timing.prior_milliseconds > comparison.floor_ms(timing) > 0
    record = json.loads(json.dumps(comparison.to_dict()))
    assert record["ours"][0]["timing"]["milliseconds"].keys() >= {
        "render",
        "encode",
        "UNet",
        "encode, backward",
        "optimiser",
    }
    first, second = (t.timing.steps_per_second for t in comparison.ours)
    assert record["hours"] == pytest.approx(config.train.steps * (0.25 / first + 0.75 / second) / 3600)
    tables = comparison_tables(comparison)
    assert len(tables) == 2 and "views of 16 pixels" in str(tables[1].title)
    assert "TFLOP" in comparison_text(comparison)


def test_the_baseline_prunes_invisible_samples_and_decodes_every_encoding(configure, narrow, monkeypatch):
    config = configure(**{"generator.density_blob_scale": 30.0})
    parts = build_parts(config, random_prior(narrow, image_size=64))
    rays, nerf = bench_prior_rays(config), parts.generator
    nerf.update(0, torch.Generator())
    every = nerf.sample(rays)
    baseline = as_baseline(parts, torch.float32)
    decoded, decode = [], parts.prior.__class__.decode
    monkeypatch.setattr(parts.prior.__class__, "decode", lambda self, z: decoded.append(1) or decode(self, z))
    kept = baseline.generator.sample(rays)
    assert 0 < len(kept.ray_indices) < len(every.ray_indices)
    density = nerf.field.density(kept.positions(rays))
    assert nerf.occupancy.density.mean() > nerf.occupancy.density_threshold, "not foggy, where more would be kept"
    assert (1 - torch.exp(-density * (kept.t_ends - kept.t_starts)) >= ALPHA - 1e-6).all()
    assert torch.equal(torch.bincount(kept.ray_indices, minlength=kept.n_rays), kept.offsets.diff())
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    torch.testing.assert_close(baseline.prior.encode(image), parts.prior.encode(image))
    assert decoded == [1]
    method = baseline.distillation.method
    assert method.entries("neg", torch.tensor([0]), 200).tolist() == [0]


def test_a_devices_speed_is_that_of_matrix_products():
    slow, fast = (device_tflops(torch.device("cpu"), torch.float32, rounds=rounds) for rounds in (1, 3))
    assert 1e-3 < slow < 100 and 1e-3 < fast < 100


def test_a_model_of_other_networks_is_an_input_error(configure, narrow):
    parts = build_parts(configure(), load_prior(EMBEDDED))
    with pytest.raises(InputError, match=r"--prior sd21: its UNet2DConditionModel has [\d,]+ parameters"):
        bench_prior.compare(parts, configure(), narrow, steps=1, baseline_steps=1, warmup=0)


def bench_prior_rays(config):
    from nfsd3d.train.build import viewing_cameras

    return viewing_cameras(config, 1, 16).rays()


def test_the_command_measures_random_weights(narrow, tmp_path, capsys):
    path, threads = tmp_path / "bench.json", torch.get_num_threads()
    small = [
        "generator.samples_per_ray=8",
        "generator.encoding.log2_entries=8",
        "generator.encoding.levels=2",
        "generator.occupancy_resolution=8",
        "train.resolution=[[0.0,16],[0.5,24]]",
        "machine.rays_per_chunk=256",
        "machine.precision=float32",
    ]
    arguments = ["--prior", "sd21", "--weights", "random", "--resolution", "64", "--steps", "1", "--method", "sds"]
    arguments += ["--threads", "1"]
    try:
        assert (
            bench_command.main([*arguments, "--json", str(path), "--machine", "cpu", "--no-compile", "--set", *small])
            == 0
        )
    finally:
        torch.set_num_threads(threads)
    record = json.loads(path.read_text())
    assert record["method"] == "sds" and len(record["ours"]) == 2
    assert record["speedups"] == [
        pytest.approx(a["timing"]["steps_per_second"] / b["timing"]["steps_per_second"])
        for a, b in zip(record["ours"], record["baseline"], strict=True)
    ]
    assert "the baseline's" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "random", "--resolution", "100"], "multiple of 64"),
        (["--resolution", "256"], "--weights random"),
        (["--only", "step"], r"--only step: has no meaning with --prior; leave out --prior"),
        (["--rounds", "3"], "--rounds 3"),
        (["--points", "3"], "--points 3"),
        (["--weights", "random", "--set", "train.stepz=1"], "unknown setting train.stepz"),
    ],
)
def test_invalid_benchmark_options_are_input_errors(arguments, message):
    with pytest.raises(InputError, match=message):
        bench_command.main(["--prior", "sd21", *arguments])
