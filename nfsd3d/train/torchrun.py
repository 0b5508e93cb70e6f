"""The processes of one run that ``torchrun`` has started: their numbers, and the run directory that they share.

Importing this file does not import torch.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from nfsd3d.config.hardware import visible_gpus
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others: longer than compiling, saving and previews take."""
POLL = 0.1
"""Seconds between two looks for the first process."""
PRECEDENCE = 30.0
"""Seconds in which the first process finds and prints an error that another one has found."""
_RUN_DIR = "nfsd3d run directory"


def check_views(views: int, processes: int) -> None:
    """Raises `InputError` if the ``views`` of a step cannot be divided among ``processes``."""
    if views % processes:
        raise InputError(
            f"train.batch_size={views}: {processes} processes, one for each GPU, share the views of a step equally; "
            f"set train.batch_size={-(-views // processes) * processes}, or choose another number of processes"
        )


@dataclass(frozen=True)
class Worker:
    """The process with ``index`` of ``count`` that compute a run together; by default one process.

    ``local_index`` of ``local_count`` counts those of this machine. ``restarts`` is how often torchrun has started them
    again. ``parent`` is torchrun's process, None without it.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1
    restarts: int = 0
    parent: int | None = None

    @classmethod
    def of_environment(cls, variables: Mapping[str, str] = os.environ) -> Worker:
        """This process, by the environment variables that torchrun sets."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if not {*names, "MASTER_ADDR", "MASTER_PORT"} <= variables.keys():
            return cls()
        index, count, local_index, local_count = (int(variables[name]) for name in names)
        restarts = int(variables.get("TORCHELASTIC_RESTART_COUNT", 0))
        parent = os.getppid() if "TORCHELASTIC_RUN_ID" in variables else None
        return cls(index, count, local_index, local_count, restarts, parent)

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files and output."""
        return self.index == 0

    def check(self, config: Config) -> None:
        """Raises `InputError` if the processes cannot share the run: its views, the GPUs, a viewer."""
        device = config.machine.device
        check_views(config.train.batch_size, self.count)
        if self.count > 1 and config.viewer:
            raise InputError(
                f"viewer={str(config.viewer).lower()}: a run of {self.count} processes cannot be watched while it "
                "trains; leave it out, and see its checkpoints with: nfsd3d view RUN_DIR"
            )
        if self.count == 1 or device == "cpu":
            return
        if device != "cuda":
            raise InputError(f"machine.device={device}: {self.count} processes take one GPU each; set it to cuda")
        if self.local_count > visible_gpus():
            raise InputError(
                f"machine.device=cuda: {self.local_count} processes on a machine with {visible_gpus()} visible GPU(s); "
                f"start torchrun with --nproc_per_node={visible_gpus()}"
            )

    def local(self, config: Config) -> Config:
        """``config`` with the views of this process, which decide its memory and its networks' batch sizes."""
        if self.count == 1:
            return config
        values = config.to_dict()
        values["train"]["batch_size"] //= self.count
        return Config.from_dict(values)

    def begun(self) -> str | None:
        """The run directory from before a restart by torchrun; None if there was neither."""
        return self.store.get(_RUN_DIR).decode() if self.restarts and self.store.check([_RUN_DIR]) else None

    def publish(self, run_dir: str) -> None:
        """Lets the other processes begin: ``run_dir`` is this one's, and the model's files are there."""
        if self.count > 1 or self.parent is not None:
            self.store.set(_RUN_DIR, run_dir)
            self.store.set(self._key, run_dir)

    @property
    def shared(self) -> bool:
        """Whether the first process has published a run directory since the last start by torchrun."""
        return self.store.check([self._key])

    def published(self) -> str:
        """The run directory, once the first process has published it.

        It polls, because waiting within torch ignores signals: torchrun would need its 30 seconds to end this process.
        """
        while not self.shared:
            time.sleep(POLL)
        return self.store.get(self._key).decode()

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Within the block only the first process prints; with ``NFSD3D_DEBUG=1`` all do.

        An error of another one is raised after :data:`PRECEDENCE` seconds: most are found by all of them, and when the
        first one has printed it, torchrun ends the others.
        """
        if self.first or os.environ.get("NFSD3D_DEBUG") == "1":
            yield
            return
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            try:
                yield
            except Exception:
                time.sleep(PRECEDENCE)
                raise

    @cached_property
    def store(self) -> TCPStore:
        """torchrun's key-value store, which survives its restarts; without torchrun that of the first process."""
        from torch.distributed import TCPStore

        hosts = self.first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return TCPStore(address, port, self.count, hosts, TIMEOUT, wait_for_workers=False)

    @property
    def _key(self) -> str:
        return f"{_RUN_DIR} {self.restarts}"


ALONE = Worker()
"""The process of a run that has no other."""
