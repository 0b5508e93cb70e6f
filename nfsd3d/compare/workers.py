"""Jobs side by side: processes that each keep to their share of the cores and do one job after the other."""

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

from nfsd3d.compare.cores import keep_to, shares, threads, usable_cores
from nfsd3d.train.interrupts import Interrupted, stop_requests

if TYPE_CHECKING:
    from nfsd3d.compare.jobs import Trial
    from nfsd3d.compare.records import Record

_PATIENCE = 60.0  # seconds for a checkpoint to be written


def run_trials(
    trials: Sequence["Trial"],
    output: Path,
    pictures: Path,
    on_result: Callable[["Trial", "Record | str"], None],
    *,
    jobs: int,
    keep: bool = False,
) -> None:
    """Does all ``trials``, ``jobs`` at a time; ``on_result`` hears of each its record, or what went wrong.

    What the jobs print goes to ``output``/worker-N.log, and their small pictures to ``pictures``. An interruption ends
    the processes once their runs have saved a checkpoint, from which a later call goes on.

    Raises:
        Interrupted: SIGINT or SIGTERM.
        InputError: more jobs than cores.
    """
    waiting = iter(trials)
    cores = shares(usable_cores(), jobs)[: max(1, len(trials))]
    output.mkdir(parents=True, exist_ok=True)
    with stop_requests() as stop, _processes(cores, (output, pictures, keep)) as workers:
        busy: dict[Connection, Trial] = {}
        for worker in workers:
            _give_next(worker.pipe, waiting, busy)
        while busy:
            for pipe in wait(list(busy), timeout=0.5):
                assert isinstance(pipe, Connection)
                trial = busy.pop(pipe)
                try:
                    result = pipe.recv()
                except EOFError:
                    on_result(trial, "the process died; is there enough memory?")
                    continue
                on_result(trial, result)
                _give_next(pipe, waiting, busy)
            if stop.signum is not None:
                raise Interrupted(stop.signum, "interrupted; the same command goes on from here")
        for trial in waiting:
            on_result(trial, "not started: no process is left")


def _give_next(pipe: Connection, waiting: Iterator["Trial"], busy: dict[Connection, "Trial"]) -> None:
    trial = next(waiting, None)
    pipe.send(trial)
    if trial is not None:
        busy[pipe] = trial


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    pipe: Connection


@contextmanager
def _processes(shares: Sequence[Sequence[int]], options: tuple[Path, Path, bool]) -> Iterator[list[_Worker]]:
    """The processes, which are ended after the block: at once if it raises, else when they have nothing left to do."""
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


def _work(pipe: Connection, index: int, cores: list[int], output: Path, pictures: Path, keep: bool) -> None:
    """A worker process: trials come and results go through ``pipe``, until a None comes."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C is for the parent, which ends its workers one by one
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
        while (trial := pipe.recv()) is not None:
            pipe.send(_result(trial.name, partial(perform, trial, output, pictures, classifier, keep=keep)))
    except EOFError:  # the parent is gone
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
    """Within the block, processes that start see these variables."""
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
