"""A pool of worker processes, each pinned to its share of the cores."""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from nfsd3d.jobs.cores import keep_to, shares, threads, usable_cores
from nfsd3d.train.interrupts import Interrupted, stop_requests

if TYPE_CHECKING:
    from nfsd3d.compare.jobs import PlannedJob
    from nfsd3d.compare.records import Record

_PATIENCE = 60.0  # seconds in which a run saves its checkpoint


def run_jobs(
    jobs: Sequence["PlannedJob"],
    output: Path,
    images: Path,
    on_result: Callable[["PlannedJob", "Record | str"], None],
    *,
    workers: int,
    keep: bool = False,
) -> None:
    """Runs all ``jobs`` on ``workers`` processes, and calls ``on_result`` with each job's record or error message.

    The jobs' output goes to ``output``/worker-N.log, and their thumbnails to ``images``. An interruption stops the
    processes after their runs have saved a checkpoint; rerun to resume.

    Raises:
        Interrupted: a signal ended it.
        InputError: more workers than cores.
    """
    waiting = iter(jobs)
    cores = shares(usable_cores(), workers)[: max(1, len(jobs))]
    output.mkdir(parents=True, exist_ok=True)
    with stop_requests() as stop, _processes(cores, (output, images, keep)) as processes:
        busy: dict[Connection, PlannedJob] = {}
        for worker in processes:
            _give_next(worker.pipe, waiting, busy)
        while busy:
            for pipe in wait(list(busy), timeout=0.5):
                assert isinstance(pipe, Connection)
                job = busy.pop(pipe)
                try:
                    result = pipe.recv()
                except EOFError:
                    on_result(job, "the process died; is there enough memory?")
                    continue
                on_result(job, result)
                _give_next(pipe, waiting, busy)
            if stop.signum is not None:
                raise Interrupted(stop.signum, "interrupted; rerun the same command to resume")
        for job in waiting:
            on_result(job, "not started: no process is left")


def _give_next(pipe: Connection, waiting: Iterator["PlannedJob"], busy: dict[Connection, "PlannedJob"]) -> None:
    job = next(waiting, None)
    pipe.send(job)
    if job is not None:
        busy[pipe] = job


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    pipe: Connection


@contextmanager
def _processes(shares: Sequence[Sequence[int]], options: tuple[Path, Path, bool]) -> Iterator[list[_Worker]]:
    """The processes; after the block they are joined, or terminated at once if it raises."""
    context = multiprocessing.get_context("spawn")
    workers: list[_Worker] = []
    with _environment(threads(len(shares[0]))):
        for index, cores in enumerate(shares):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, index, list(cores), *options), daemon=True)
            process.start()
            theirs.close()
            workers.append(_Worker(process, ours))
    try:
        yield workers
    except BaseException:
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        for worker in workers:
            worker.process.join(_PATIENCE)
            worker.process.kill()


def _work(pipe: Connection, index: int, cores: list[int], output: Path, images: Path, keep: bool) -> None:
    """Runs the jobs received through ``pipe``, and sends back their results, until it receives None."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches the parent only, which terminates its workers
    stream = os.open(output / f"worker-{index}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(stream, descriptor)
    keep_to(cores)

    import torch

    torch.set_num_threads(len(cores))
    from nfsd3d.compare.jobs import perform
    from nfsd3d.evaluate.classifier.model import Classifier

    classifier = Classifier.load()
    try:
        while (job := pipe.recv()) is not None:
            pipe.send(_result(job.name, partial(perform, job, output, images, classifier, keep=keep)))
    except EOFError:  # the parent has exited
        pass
    except Interrupted as interruption:
        sys.exit(interruption.exit_code)


def _result(name: str, perform: Callable[[], "Record"]) -> "Record | str":
    try:
        return perform()
    except Exception as error:
        print(f"{name}:", flush=True)
        traceback.print_exc()
        return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Sets environment variables within the block, for processes that start there."""
    former = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
