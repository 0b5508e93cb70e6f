"""Chunked steps have the same results; an out-of-memory error, simulated on the CPU, leads to a retry."""

import io
import json
import weakref
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from nfsd3d.errors import RunFailed
from nfsd3d.generators.nerf.occupancy import OccupancyGrid
from nfsd3d.prior.files.locate import EMBEDDED
from nfsd3d.prior.load_prior import load_prior
from nfsd3d.runs import checkpoints
from nfsd3d.runs.metrics import read_metrics
from nfsd3d.runs.summary import read_summary
from nfsd3d.train import task
from nfsd3d.train.build import build_parts
from nfsd3d.train.memory.chunking import SMALLEST_PIXELS, ChunkSizes
from nfsd3d.train.memory.retry import differentiate
from nfsd3d.train.plan import plan_at
from nfsd3d.train.run import train_and_export
from nfsd3d.train.step import StepMetrics, StepResult, step_loss
from nfsd3d.train.task import Task

OFF = {"export.mesh": False, "export.turntable": False, "export.report": False}

pytestmark = pytest.mark.usefixtures("tiny_prior")


def gradient_of(config, chunks):
    """Loss, metrics, NFE, every parameter's gradient, and the generator's state after a step."""
    parts = build_parts(config)
    plan = replace(plan_at(config.train, 0.6), chunks=chunks)
    parts.generator.update(0, parts.rng)
    result = step_loss(parts.generator, parts.prior, parts.bank, parts.distillation, parts.ranges, plan, parts.rng)
    result.loss.backward()
    gradients = {name: value.grad for name, value in parts.generator.named_parameters()}
    return result.loss.detach(), result.metrics.tensors(), result.evaluations, gradients, parts.rng.get_state()


@pytest.mark.parametrize("method", ["nfsd", "sdi"])
def test_chunks_do_not_change_the_step(configure, method):
    config = configure(
        **{
            "distill.method": method,
            "train.batch_size": 3,
            "train.regularizers.orient": 1.0,
            "train.random_background": 0.5,
            "train.shading.lambertian": 1.0,
            "generator.normals": "finite_difference",
        }
    )
    whole, metrics, evaluations, gradients, rng = gradient_of(config, ChunkSizes())
    divided = gradient_of(config, ChunkSizes(rays_per_chunk=300, unet_batch_size=2, checkpoint_encoder=True))
    torch.testing.assert_close(divided[0], whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(divided[1], metrics, rtol=1e-4, atol=1e-5)
    assert divided[2] == evaluations
    for name, gradient in gradients.items():
        torch.testing.assert_close(divided[3][name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
    assert torch.equal(divided[4], rng)


def test_chunks_shrink_to_the_smallest():
    chunks, seen = ChunkSizes(), []
    while chunks is not None:
        seen.append(chunks)
        chunks = chunks.smaller(views=4, resolution=64)
    assert seen[1] == ChunkSizes(8192, 4, True)
    assert seen[-1] == ChunkSizes(SMALLEST_PIXELS, 1, True) and len(seen) == 4
    assert str(seen[-1]) == "4,096 rays per chunk, 1 latent per batch, checkpointed encoder"
    # Less than the whole is never a larger number than was asked for.
    assert ChunkSizes(rays_per_chunk=300).smaller(4, 64) == ChunkSizes(300, 4, True)
    assert ChunkSizes(rays_per_chunk=10**9).smaller(1, 128).rays_per_chunk == 128**2 // 2


SIMULATED = torch.OutOfMemoryError("CUDA out of memory (simulated)")


def scarce_memory(monkeypatch, fits, at_step=2, error=SIMULATED):
    """From ``at_step`` on (counted from 1), a step whose chunks do not fit runs out of memory after rendering."""
    original, seen = task.step_loss, []

    def step(*arguments):
        result = original(*arguments)
        plan = arguments[5]
        seen.append(plan.chunks)
        if plan.progress >= (at_step - 1) / 6 and not fits(plan.chunks):
            raise error
        return result

    monkeypatch.setattr(task, "step_loss", step)
    return seen


def final_tensors(run_dir):
    return load_file(checkpoints.newest(run_dir).path.with_suffix(".safetensors"))


def test_a_step_that_does_not_fit_is_retried_with_smaller_chunks(configure, tmp_path, monkeypatch):
    straight = train_and_export(configure(**OFF, run_dir=tmp_path / "straight"), console=Console(file=io.StringIO()))
    console, released = Console(file=io.StringIO(), width=80), []
    with monkeypatch.context() as patch:
        patch.setattr(task, "release_compiled", lambda prior: released.append(len(seen)))
        seen = scarce_memory(patch, lambda chunks: chunks.unet_batch_size == 1)
        run_dir = train_and_export(configure(**OFF, run_dir=tmp_path / "scarce"), console=console)
    # Step 1 fits, step 2 at the third attempt, and the smaller chunks stay.
    assert [chunks.unet_batch_size for chunks in seen] == [None, None, 2, 1, 1, 1, 1, 1]
    printed = console.file.getvalue()
    assert released == [2, 3, 8, 8]  # before each repetition; before the export, and whatever happens
    assert printed.count("out of memory") == 1 and "step 2: out of memory; from here on 1 latent per batch" in printed
    summary = read_summary(run_dir)
    assert (summary["status"], summary["steps"]) == ("done", 6)
    assert summary["smaller_chunks"] == {
        "from_step": 2, "rays_per_chunk": None, "unet_batch_size": 1, "checkpoint_encoder": True,
    }  # fmt: skip
    assert "smaller_chunks" not in read_summary(straight)
    assert summary["network_evaluations"] == read_summary(straight)["network_evaluations"]
    # The repeated step drew the same numbers: the run is the one that had memory enough.
    done, expected = final_tensors(run_dir), final_tensors(straight)
    assert torch.equal(done["rng"], expected["rng"])
    for name, value in expected.items():
        torch.testing.assert_close(done[name], value, rtol=1e-3, atol=1e-5)
    assert read_metrics(run_dir / "metrics.jsonl")[-1]["opacity"] == pytest.approx(
        read_metrics(straight / "metrics.jsonl")[-1]["opacity"], rel=1e-4
    )


def test_a_run_that_fits_in_no_chunks_can_be_resumed(configure, tmp_path, monkeypatch):
    straight = train_and_export(configure(**OFF, run_dir=tmp_path / "straight"), console=Console(file=io.StringIO()))
    config = configure(**OFF, run_dir=tmp_path / "scarce")
    with monkeypatch.context() as patch:
        scarce_memory(patch, lambda chunks: False, at_step=4)
        with pytest.raises(RunFailed, match=r"out of GPU memory after step 3.*generator\.max_samples.*--resume"):
            train_and_export(config, console=Console(file=io.StringIO()))
    run_dir = tmp_path / "scarce"
    assert read_summary(run_dir)["status"] == "failed" and "memory" in read_summary(run_dir)["reason"]
    assert json.loads(checkpoints.newest(run_dir).path.read_text())["step"] == 3
    train_and_export(config, resume=run_dir, console=Console(file=io.StringIO()))
    # Not a random number is lost; only an occupancy grid that was renewed in the failed step is renewed once more.
    assert torch.equal(final_tensors(run_dir)["rng"], final_tensors(straight)["rng"])
    assert read_summary(run_dir)["steps"] == 6
    assert read_summary(run_dir)["network_evaluations"] == read_summary(straight)["network_evaluations"]


@pytest.mark.parametrize("method", ["nfsd", "vsd"])
def test_a_run_whose_first_step_does_not_fit_can_be_resumed(configure, tmp_path, monkeypatch, method):
    if method == "vsd":
        monkeypatch.setattr("nfsd3d.train.build.build_prior", lambda config: load_prior(EMBEDDED))
    config = configure(**OFF, **{"distill.method": method, "train.steps": 1}, run_dir=tmp_path / "scarce")
    with monkeypatch.context() as patch:
        scarce_memory(patch, lambda chunks: False, at_step=1)
        with pytest.raises(RunFailed, match="out of GPU memory after step 0"):
            train_and_export(config, console=Console(file=io.StringIO()))
    run_dir = tmp_path / "scarce"
    assert checkpoints.newest(run_dir).steps == 0
    train_and_export(config, resume=run_dir, console=Console(file=io.StringIO()))
    assert (read_summary(run_dir)["status"], read_summary(run_dir)["steps"]) == ("done", 1)


@pytest.mark.parametrize(
    "words",
    [
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_out_of_memory_errors_of_other_libraries_lead_to_smaller_chunks_too(configure, monkeypatch, words):
    seen = scarce_memory(monkeypatch, lambda chunks: chunks.unet_batch_size == 1, error=RuntimeError(words))
    run_dir = train_and_export(configure(**OFF, **{"train.steps": 2}), console=Console(file=io.StringIO()))
    assert seen[-1].unet_batch_size == 1 and read_summary(run_dir)["status"] == "done"


def test_out_of_memory_in_the_occupancy_update_releases_compiled_code(configure, tmp_path, monkeypatch):
    changes = {**OFF, "generator.occupancy_interval": 1, "generator.occupancy_warmup": 0, "train.steps": 4}
    straight = train_and_export(
        configure(**changes, run_dir=tmp_path / "straight"), console=Console(file=io.StringIO())
    )
    console, released, calls, original = Console(file=io.StringIO(), width=80), [], [], OccupancyGrid.update

    def scarce(failing):
        def update(grid, density_fn, step, rng):
            def density(positions):
                calls.append(step)
                if failing(len(calls)):
                    raise RuntimeError("Triton Error [CUDA]: out of memory")
                return density_fn(positions)

            original(grid, density, step, rng)

        return update

    with monkeypatch.context() as patch:
        patch.setattr(OccupancyGrid, "update", scarce(lambda call: call == 3))
        patch.setattr(task, "release_compiled", lambda prior: released.append(len(calls)))
        run_dir = train_and_export(configure(**changes, run_dir=tmp_path / "scarce"), console=console)
    assert calls == [0, 1, 2, 2, 3] and released[0] == 3
    assert "step 3: out of memory; from here on uncompiled" in console.file.getvalue()
    for name, value in final_tensors(straight).items():
        assert torch.equal(final_tensors(run_dir)[name], value), name
    with monkeypatch.context() as patch:
        calls.clear()
        patch.setattr(OccupancyGrid, "update", scarce(lambda call: call >= 3))
        with pytest.raises(RunFailed, match=r"out of GPU memory after step 2.*--resume"):
            train_and_export(configure(**changes, run_dir=tmp_path / "none"), console=Console(file=io.StringIO()))
    assert checkpoints.newest(tmp_path / "none").steps == 2


class Kept:
    """Stands for the tensors that a step keeps for its backward pass."""


class Scarce(torch.autograd.Function):
    """The identity, with a backward pass that runs out of memory if ``fails``."""

    @staticmethod
    def forward(ctx, value, kept, fails):
        ctx.kept, ctx.fails = kept, fails
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.fails:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")  # a new one, which no traceback outlives
        return gradient, None, None


def test_a_retried_step_starts_with_the_memory_of_the_failed_one_freed(configure):
    """The failure is in the backward pass, when all tensors of the step exist."""
    parameter, alive, before = torch.nn.Parameter(torch.ones(3)), weakref.WeakSet(), []

    class ScarceTask(Task):
        def step(self, plan):
            before.append(len(alive))
            kept = Kept()
            alive.add(kept)
            loss = Scarce.apply(parameter.sum(), kept, plan.chunks.unet_batch_size != 1)
            return StepResult(loss, StepMetrics(loss.detach()))

        def preview(self, on_view):
            raise NotImplementedError

        def release_compiled(self):
            pass

    plan = replace(plan_at(configure().train, 0.5), chunks=ChunkSizes())
    optimizer = torch.optim.SGD([parameter], 1.0)
    scarce = ScarceTask(generator=None, optimizer=optimizer, rng=torch.Generator())
    _, fitting = differentiate(scarce, plan)
    assert before == [0, 0, 0] and fitting.unet_batch_size == 1 and parameter.grad.tolist() == [1, 1, 1]


def test_other_errors_of_a_step_are_not_retried(configure, monkeypatch):
    scarce_memory(monkeypatch, lambda chunks: False, error=RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="multiplied"):
        train_and_export(configure(**OFF, **{"train.steps": 2}), console=Console(file=io.StringIO()))


def test_configured_chunks_are_used_from_the_start(configure, monkeypatch):
    seen = scarce_memory(monkeypatch, lambda chunks: True)
    config = configure(**OFF, **{"machine.rays_per_chunk": 256, "machine.unet_batch_size": 1, "train.steps": 2})
    train_and_export(config, console=Console(file=io.StringIO()))
    assert seen == [ChunkSizes(256, 1, False)] * 2


def test_vsds_lora_network_learns_a_retried_step_once(configure, monkeypatch, tmp_path):
    monkeypatch.setattr("nfsd3d.train.build.build_prior", lambda config: load_prior(EMBEDDED))
    changes = {**OFF, "distill.method": "vsd", "distill.lora_learning_rate": 1e-2}
    changes |= {"train.steps": 3, "train.log_every": 1}
    names, ends = ("enough", "scarce"), []
    for name, fits in zip(names, (lambda chunks: True, lambda chunks: chunks.unet_batch_size == 1), strict=True):
        with monkeypatch.context() as patch:
            scarce_memory(patch, fits)
            run_dir = train_and_export(
                configure(**changes, run_dir=tmp_path / name), console=Console(file=io.StringIO())
            )
            ends.append(final_tensors(run_dir))
    steps = [
        {float(value) for name, value in end.items() if name.startswith("lora_optimizer.") and "step" in name}
        for end in ends
    ]
    assert steps == [{3.0}, {3.0}]
    losses = [[line["lora_loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")] for name in names]
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and len(set(losses[0])) > 1
