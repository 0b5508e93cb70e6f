"""Whole training steps with the embedded prior and every implementation of the kernels on this machine."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from nfsd3d.config.compose import compose
from nfsd3d.config.hardware import check_machine
from nfsd3d.generators.nerf.sampling.nerfacc import nerfacc_obstacle
from nfsd3d.train.build import build_generator, build_parts
from nfsd3d.train.plan import plan_at
from nfsd3d.train.run import train_and_export
from nfsd3d.train.step import step_loss


def first_step(configure, device, field, sampler):
    """The gradients and metrics of a shaded first step from a grid with occupied cells; a second step trains."""
    config = configure(
        **{
            "machine.name": device,
            "machine.device": device,
            "machine.precision": "float32",
            "backend.field": field,
            "backend.sampler": sampler,
            "train.shading": {"lambertian": 1.0, "textureless": 0.0, "ambient": 0.3},
            "train.random_background": 0.0,
        }
    )
    check_machine(config)
    parts = build_parts(config)
    table = next(parts.generator.field.encoding.parameters())
    torch.nn.init.normal_(table, std=0.1, generator=torch.Generator(device).manual_seed(1))
    plan = plan_at(config.train, 0.0)
    found = []
    for step in range(2):
        parts.generator.update(step, parts.rng)
        result = step_loss(parts.generator, parts.prior, parts.bank, parts.distillation, parts.ranges, plan, parts.rng)
        parts.optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        gradients = {name: value.grad.cpu() for name, value in parts.generator.named_parameters()}
        found.append((gradients, {name: float(value) for name, value in result.metrics.tensors().items()}))
        parts.optimizer.step()
    for gradients, metrics in found:
        assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in gradients.values())
        assert metrics["samples_per_ray"] > 1
    return found[0]


def test_a_training_step_is_the_references(configure, fast_backend):
    backend, device = fast_backend
    expected, expected_metrics = first_step(configure, device.type, "torch", "torch")
    found, metrics = first_step(configure, device.type, backend, backend)
    assert metrics == pytest.approx(expected_metrics, rel=1e-3)
    for name, gradient in found.items():
        assert (gradient - expected[name]).norm() <= 1e-3 * expected[name].norm(), name


@pytest.mark.usefixtures("triton_interpreter")
@pytest.mark.parametrize(("precision", "tensor_cores"), [("float32", False), ("bfloat16", True)])
def test_the_fields_network_is_as_precise_as_the_machine(precision, tensor_cores, configure):
    generator = build_generator(configure(**{"backend.field": "triton", "machine.precision": precision}))
    assert generator.field._fused.keywords == {"tensor_cores": tensor_cores}
    assert build_generator(configure(**{"machine.precision": precision})).field._fused is None


@pytest.mark.gpu
@pytest.mark.parametrize(("field", "sampler"), [("tcnn", "nerfacc"), ("tcnn", "triton"), ("triton", "nerfacc")])
def test_a_training_step_with_other_libraries(field, sampler, configure):
    """Their numbers differ from the reference's; the test is that they train."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")  # without one, tinycudann cannot even be imported
    for name, package in (("tcnn", "tinycudann"), ("triton", "triton")):
        if name in (field, sampler):
            pytest.importorskip(package)
    if sampler == "nerfacc" and nerfacc_obstacle() is not None:
        pytest.skip(f"nerfacc: {nerfacc_obstacle()}")
    first_step(configure, "cuda", field, sampler)


@pytest.mark.gpu
def test_a_short_run_on_a_gpu(tmp_path: Path):
    """A run of ``nfsd3d`` with machine=cuda backend=triton prior=shapes, with few steps and few images."""
    pytest.importorskip("triton")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    overrides = [
        "prompt=a red and white dotted mushroom",
        "prior=shapes",
        "machine=cuda",
        "backend=triton",
        "train.steps=20",
        "train.log_every=5",
        "export.turntable_frames=8",
        "export.turntable_size=32",
        f"run_dir={tmp_path / 'run'}",
    ]
    config = compose("nfsd", overrides)
    check_machine(config)
    run_dir = train_and_export(config, console=Console(file=io.StringIO()))
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "done"
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 20
    assert all(line["samples_per_ray"] > 1 for line in lines)
