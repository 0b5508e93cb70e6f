"""Jobs as tasks of a Ray cluster: the one at ``settings.address``, or one of this machine for this sweep alone.

A worker process keeps its imports from job to job, except one with a GPU. Ray ends a driver's tasks when the driver
dies; their runs go on from the last checkpoint. The nodes of a cluster need this package and a common file system.
"""

import os
import secrets
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import ray

from nfsd3d.errors import InputError
from nfsd3d.jobs.cores import usable_cores
from nfsd3d.jobs.engines.base import EngineSettings
from nfsd3d.jobs.engines.workers import QueueingEngine, Task
from nfsd3d.jobs.perform import Command

if TYPE_CHECKING:
    from ray import ObjectRef

TOKEN = "RAY_AUTH_TOKEN"


class RayEngine(QueueingEngine["ObjectRef[str]"]):
    """See the module; at most ``settings.workers`` tasks at a time.

    Raises:
        InputError: more threads than cores, or no cluster (on entering).
    """

    def __init__(self, settings: EngineSettings, command: Command) -> None:
        super().__init__(settings.workers)
        self._settings, self._command = settings, command
        if settings.address is None and (settings.threads or 1) > len(usable_cores()):
            raise InputError(
                f"threads={settings.threads}: a job cannot have more than {len(usable_cores())} cores here"
            )
        self._run = ray.remote(
            num_cpus=settings.threads or 1,
            num_gpus=settings.gpus or 0,
            max_retries=0,  # the controller starts again what died
        )(_run)
        self._cancelled: set[ObjectRef[str]] = set()

    def __enter__(self) -> Self:
        address = self._settings.address
        handler, group = signal.getsignal(signal.SIGTERM), os.getpgrp()
        if address is None:
            # Else Ray writes a token into the home directory, which turns authentication on for all later clusters.
            os.environ.setdefault(TOKEN, secrets.token_hex(32))
        else:
            _check_reachable(address)
        try:
            ray.init(
                address or "local",
                num_cpus=len(usable_cores()) if address is None else None,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level="ERROR",
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            line = " ".join(str(error).split())
            raise InputError(f"address={address}: no Ray cluster could be used ({line})") from error
        # Ray ends this process at SIGTERM, and takes it out of its process group, where a terminal's Ctrl-C arrives.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
        with suppress(OSError):
            os.setpgid(0, group)
        return self

    def give(self, jobs: Sequence[tuple[Path, int]]) -> list["ObjectRef[str]"]:
        """See :class:`nfsd3d.jobs.engines.workers.QueueingEngine`."""
        threads, processes = self._settings.threads or 1, self._settings.processes
        tasks = [Task(self._command, folder, number, "ray", threads, processes) for folder, number in jobs]
        return list(map(self._run.remote, tasks))

    def finished(self, handles: Sequence["ObjectRef[str]"], timeout: float) -> Mapping["ObjectRef[str]", str]:
        """See :class:`nfsd3d.jobs.engines.workers.QueueingEngine`."""
        ready, _ = ray.wait(handles, num_returns=1, timeout=timeout) if handles else ([], [])
        return {reference: _outcome(reference) for reference in ready}

    def interrupt(self, jobs: Mapping["ObjectRef[str]", tuple[Path, int]]) -> None:
        """See :class:`nfsd3d.jobs.engines.workers.QueueingEngine`."""
        for reference in jobs.keys() - self._cancelled:  # once: a second SIGINT would cut the save short
            ray.cancel(reference)  # SIGINT to a task that runs
            self._cancelled.add(reference)

    def close(self, left: Sequence["ObjectRef[str]"]) -> None:
        """See :class:`nfsd3d.jobs.engines.workers.QueueingEngine`."""
        for reference in left:
            ray.cancel(reference, force=True)
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises `InputError` if nothing listens at an address HOST:PORT, for which Ray would wait minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise InputError(f"address={address}: no Ray cluster could be reached ({error})") from error


def _run(task: Task) -> str:
    return task.run(ray.get_runtime_context().get_task_id() or "")


def _outcome(reference: "ObjectRef[str]") -> str:
    """Why the job of an ended task has not come to an end, or ""."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        sentence = " ".join(str(error).split()).partition(". ")[0]
        return f"its task died ({type(error).__name__}: {sentence})"
