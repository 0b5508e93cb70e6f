"""Data parallelism: the processes (ranks) of one run share the views of each step.

Problem: the result must not depend on the number of ranks, and one that runs out of memory, gets a signal or dies must
not leave the others waiting.

Idea: every rank draws the random numbers of the whole step, computes its share of the views, and averages gradients
and metrics with the others. All are means over views, so the sums are those of one process in another order. The same
numbers lead all ranks to the same decisions (divergence, retries, occupancy updates), and their states stay equal bit
for bit. The first rank alone writes. The others get checkpoints from it.

Before each sum of tensors the ranks add up a few integers on the CPU (:meth:`Ranks.total`). A rank without memory takes
part in the next such sum and marks it as failed: all ranks then repeat the step with smaller chunks. A rank that has
died closes its connections, and the sum fails in the others within a second (:class:`RankLost`). A sum on the GPUs,
which would not end without that rank, has not begun by then.

Measurement: tests/train/test_ranks.py compares two processes with one, kills one, and lets torchrun restart them.

torchrun (2.13, on Linux): if a worker ends with an error, the others get SIGTERM, and SIGKILL after 30 s. A signal to
torchrun reaches the workers, and nothing is restarted. If torchrun dies of SIGKILL, or of SIGUSR1, which it does not
handle, its workers run on: the ranks stop as after SIGTERM.
"""

import importlib
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.nn import Parameter

from nfsd3d.errors import RunFailed
from nfsd3d.shared_batch import SharedGenerator
from nfsd3d.train import torchrun
from nfsd3d.train.regularizers import at_least_one
from nfsd3d.train.torchrun import TIMEOUT, Worker
from nfsd3d.views.cameras import Cameras

Batch = TypeVar("Batch", Tensor, Cameras)
T = TypeVar("T")


class RankLost(RunFailed):
    """Another process of the run has died or does not answer."""


class OutOfMemoryElsewhere(torch.OutOfMemoryError):
    """Another process of the run is out of memory."""


@dataclass(frozen=True)
class Ranks:
    """The communication of the processes of a run, for the one that ``worker`` describes; see the module."""

    worker: Worker = torchrun.ALONE

    @property
    def alone(self) -> bool:
        """Whether the run has one process."""
        return self.worker.count == 1

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files and output."""
        return self.worker.first

    @contextmanager
    def joined(self, device: str) -> Iterator[None]:
        """Within the block the ranks can communicate; each takes its own GPU of ``device`` "cuda".

        Raises:
            RankLost: one has died meanwhile.
        """
        if self.alone:
            yield
            return
        if device != "cpu":
            torch.cuda.set_device(self.worker.local_index)
        # Before there is a group. Imported later, as by torch's optimisers, its functions keep the group as a default.
        # The threads of a group that is not freed can abort a process that ends (findings/late_import_keeps_group.sh).
        importlib.import_module("torch.distributed.nn.functional")
        with _others_alive():
            distributed.init_process_group(
                "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
                store=distributed.PrefixStore(f"ranks {self.worker.restarts}", self.worker.store),
                rank=self.worker.index,
                world_size=self.worker.count,
                timeout=TIMEOUT,
            )
        yield
        distributed.destroy_process_group()  # after an error it would wait for the others

    def own(self, batch: Batch) -> Batch:
        """This rank's share of a batch of the step's views."""
        if self.alone:
            return batch
        size = len(batch) // self.worker.count
        return batch[size * self.worker.index : size * (self.worker.index + 1)]

    def own_generator(self, rng: torch.Generator) -> torch.Generator:
        """``rng`` as the generator of this rank's share (`nfsd3d.shared_batch.draw`)."""
        if self.alone:
            return rng
        return SharedGenerator.of(rng, self.worker.index, self.worker.count, self.total)

    def total(self, number: int, *, failed: bool = False) -> int:
        """The sum of ``number`` over all ranks, which also finds out whether one has ``failed``.

        Raises:
            OutOfMemoryElsewhere: one has, in a block of :meth:`failing_together`.
            RankLost: one has died.
        """
        if self.alone:
            return number
        numbers = torch.tensor([number, failed])
        _reduce(numbers)
        if numbers[1]:
            raise OutOfMemoryElsewhere("out of memory in another process of the run")
        return int(numbers[0])

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Raises a ``torch.OutOfMemoryError`` of one rank's block in all of them."""
        try:
            yield
        except OutOfMemoryElsewhere:
            raise
        except torch.OutOfMemoryError:
            with suppress(OutOfMemoryElsewhere):
                self.total(0, failed=True)
            raise

    def divisor(self, number: Tensor) -> Tensor:
        """The mean over the ranks of a number of pixels, a scalar, to divide by: not 0."""
        if self.alone:
            return at_least_one(number)
        self.total(0)
        number = number.clone()
        _reduce(number)
        return at_least_one(number) / self.worker.count

    def average(self, parameters: Sequence[Parameter], numbers: Tensor) -> Tensor:
        """Replaces the gradients by their means over the ranks; returns the means of ``numbers`` [K].

        Raises:
            OutOfMemoryElsewhere, RankLost: as :meth:`total`.
        """
        # One sum for all; what takes memory comes before the total, where it may fail.
        gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in parameters]
        means = torch.cat([*(gradient.flatten() for gradient in gradients), numbers])
        given = torch.tensor([value.grad is not None for value in parameters], dtype=torch.int32)
        self.total(0)
        _reduce(given)
        _reduce(means)
        means /= self.worker.count
        *parts, numbers = means.split([*(value.numel() for value in parameters), len(numbers)])
        for value, there, part in zip(parameters, given.tolist(), parts, strict=True):
            value.grad = part.view_as(value) if there else None
        return numbers

    def stop_signal(self, signum: int | None) -> int | None:
        """The signal that a rank has got, the same in all of them; ``signum`` is this one's."""
        if self.alone:
            return signum
        orphaned = self.worker.parent is not None and os.getppid() != self.worker.parent
        largest = torch.tensor(signum or (signal.SIGTERM if orphaned else 0))
        _reduce(largest, maximum=True)
        return int(largest) or None

    def from_first(self, make: Callable[[], T]) -> T:
        """The result of ``make`` in the first rank, where alone it is called.

        Raises:
            RankLost: the first rank has ended.
        """
        if self.alone:
            return make()
        values = [make() if self.first else None]
        with _others_alive():
            distributed.broadcast_object_list(values, device=torch.device("cpu"))
        (value,) = values
        return value  # type: ignore[return-value]


ALONE = Ranks()
"""A run in one process."""


def _reduce(tensor: Tensor, *, maximum: bool = False) -> None:
    """Replaces ``tensor`` by the sum, or the maximum, over the ranks."""
    operations = distributed.ReduceOp  # builds of torch without distributed lack it
    with _others_alive():
        distributed.all_reduce(tensor, operations.MAX if maximum else operations.SUM)


@contextmanager
def _others_alive() -> Iterator[None]:
    """Raises an error of the communication in the block as `RankLost`."""
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"^\[\S+\] ", "", str(error).partition("\n")[0]).partition(". ")[0]  # no path, no advice
        raise RankLost(f"another process of the run has ended, or does not answer ({reason})") from error
