"""Whole runs on a fake GPU: equal to the CPU's, with all tensors on the right device."""

import json

import pytest
from fake_gpu import fake_gpu
from tiny_runs import OFF, final_tensors

import nfsd3d
from nfsd3d.train.run import train_and_export

ON_CUDA = {"machine.name": "cuda", "machine.device": "cuda"}


@pytest.mark.parametrize(("method", "exported"), [("nfsd", {}), ("vsd", OFF)])
def test_a_gpu_run_equals_the_cpu_run_and_opens_on_a_cpu(configure, tmp_path, console, method, exported):
    """Resumed from a checkpoint and exported; the same tensors as without a GPU, and opened without one."""
    choices = {"distill.method": method, "machine.precision": "float32", "train.keep_checkpoints": 9}
    expected = train_and_export(configure(**choices, **OFF, run_dir=tmp_path / "cpu"), console=console)
    with fake_gpu() as gpu:
        run_dir = train_and_export(configure(**choices, **ON_CUDA, **OFF, run_dir=tmp_path / "cuda"), console=console)
        for path in (run_dir / "checkpoints").glob("step-000006.*"):
            path.unlink()
        resumed = configure(**choices, **ON_CUDA, **exported, run_dir=run_dir)
        train_and_export(resumed, resume=run_dir, console=console)
    assert gpu.errors == []
    found = final_tensors(run_dir)
    for name, value in final_tensors(expected).items():
        # The networks' weights lie in another order there, and are added in another.
        assert (found[name].double() - value.double()).norm() <= 1e-3 * value.double().norm(), name
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["device"]) == ("done", 6, "a fake GPU")
    files = ("mesh/model.glb", "turntable.mp4", "report.html")
    assert [(run_dir / name).is_file() for name in files] == [exported is not OFF] * 3
    assert nfsd3d.load_run(run_dir).views(n=2, size=16).shape == (2, 16, 16, 3)


@pytest.mark.usefixtures("triton_interpreter")
def test_half_precision_and_the_kernels_of_a_gpu_give_a_run_too(configure, console):
    """What ``machine=cuda`` chooses."""
    kernels = {"backend.field": "triton", "backend.sampler": "triton", "machine.precision": "bfloat16"}
    small = {"train.steps": 2, "train.preview_every": 2, "train.checkpoint_every": 2}
    with fake_gpu() as gpu:
        run_dir = train_and_export(configure(**ON_CUDA, **OFF, **kernels, **small), console=console)
    assert gpu.errors == []
    assert all(tensor.isfinite().all() for tensor in final_tensors(run_dir).values())
