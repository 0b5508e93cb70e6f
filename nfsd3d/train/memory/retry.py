"""Out-of-memory retry: a step that does not fit is repeated with smaller chunks and the same random numbers.

Problem: the predicted memory is an estimate, and other processes use the GPU too. A run of hours must not fail at its
largest step. Idea: the retry restores the random generator, so that it computes the same step; smaller chunks change
only the order of floating-point sums. The failed step's tensors have to be freed first. The exception's traceback
refers to them, so everything that frees memory stands outside of ``except``. Code that was compiled for larger chunks
is released as well, with its CUDA graphs, and the run continues uncompiled: compiling again would take more memory than
the retry gains. Measurement: with 2 GiB for a step of Stable Diffusion 2.1 at 512 pixels the retry finds chunks that
fit (tests/test_gpu.py). On a CPU a retried run ends as one that fits, up to rounding
(tests/train/test_memory_chunking.py).
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from nfsd3d.train.memory.chunking import ChunkSizes
from nfsd3d.train.plan import StepPlan
from nfsd3d.train.ranks import RankLost
from nfsd3d.train.step import StepMetrics, StepResult, fork
from nfsd3d.train.task import Task

OUT_OF_MEMORY_MESSAGES = (
    "out of memory",
    "ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "unable to find an engine",
)
"""Parts of the messages with which Triton, cuBLAS and cuDNN report that a GPU's memory is exhausted."""


def run_step(task: Task, plan: StepPlan, step: int, log: Callable[[str], None]) -> tuple[StepResult, ChunkSizes]:
    """Gives the parameters the gradient of ``step`` (from 0); returns its result and the chunk sizes that fitted.

    Raises:
        torch.OutOfMemoryError: the smallest chunks do not fit either; ``task.rng`` is as it was before the step.
        RankLost: another process of the run has ended; the generator is as it was before the step, too.
    """
    before = task.rng.get_state()
    buffers = [] if task.ranks.alone else [(buffer, buffer.clone()) for buffer in task.generator.buffers()]
    try:
        if update_generator(task, step):
            log(f"step {step + 1}: out of memory; from here on uncompiled")
        result, fitting = differentiate(task, plan)
    except (torch.OutOfMemoryError, RankLost):
        task.rng.set_state(before)
        for buffer, former in buffers:
            buffer.copy_(former)
        raise
    if fitting != plan.chunks:
        log(f"step {step + 1}: out of memory; from here on {fitting}, which gives the same results, uncompiled")
    return result, fitting


def update_generator(task: Task, step: int) -> bool:
    """Runs the generator's update before ``step``; repeats it without compiled code where memory runs out.

    Returns whether memory ran out.

    Raises:
        torch.OutOfMemoryError: the repeated update does not fit either.
    """
    before = task.rng.get_state()
    try:
        with _torch_error_of_every_library():
            task.generator.update(step, fork(task.rng))  # the number of draws depends on the scene
        return False
    except torch.OutOfMemoryError:
        task.rng.set_state(before)
    _free_memory(task)
    with _torch_error_of_every_library():
        task.generator.update(step, fork(task.rng))
    return True


def differentiate(task: Task, plan: StepPlan) -> tuple[StepResult, ChunkSizes]:
    """Gives the parameters a step's gradient; returns its result, without the graph, and the chunk sizes that fitted.

    Raises:
        torch.OutOfMemoryError: the smallest chunks do not fit either.
    """
    before = task.rng.get_state()
    while True:
        task.optimizer.zero_grad(set_to_none=True)
        try:
            return _attempt(task, plan), plan.chunks
        except torch.OutOfMemoryError as error:
            smaller = plan.chunks.smaller(plan.views, plan.resolution)
            if smaller is None:
                error.add_note("in the smallest chunks too")
                raise
        plan = replace(plan, chunks=smaller)
        task.rng.set_state(before)
        _free_memory(task)


def _attempt(task: Task, plan: StepPlan) -> StepResult:
    """One forward and backward pass; only this function refers to the graph, which ends with it."""
    with task.ranks.failing_together(), _torch_error_of_every_library():
        result = task.step(plan)
        result.loss.backward()
        return _of_all_ranks(task, replace(result, loss=result.loss.detach()))


def _of_all_ranks(task: Task, result: StepResult) -> StepResult:
    """``result`` with the mean metrics and the NFE of all processes; the parameters get the mean gradients."""
    if task.ranks.alone:
        return result
    groups = (group for optimizer in task.optimizers for group in optimizer.param_groups)
    parameters = [parameter for group in groups for parameter in group["params"]]
    metrics = result.metrics.tensors()
    means = task.ranks.average(parameters, torch.stack(list(metrics.values())))
    evaluations = task.ranks.total(result.evaluations)
    return replace(result, metrics=StepMetrics(**dict(zip(metrics, means, strict=True))), evaluations=evaluations)


@contextmanager
def _torch_error_of_every_library() -> Iterator[None]:
    """Re-raises other libraries' out-of-memory errors as ``torch.OutOfMemoryError``."""
    try:
        yield
    except RuntimeError as error:
        known = any(message in str(error) for message in OUT_OF_MEMORY_MESSAGES)
        if isinstance(error, torch.OutOfMemoryError) or not known:
            raise
        raise torch.OutOfMemoryError(str(error)) from error


def _free_memory(task: Task) -> None:
    """Frees cached memory, compiled code and CUDA graphs; call it outside of ``except``."""
    task.release_compiled()
    gc.collect()
    torch.cuda.empty_cache()
