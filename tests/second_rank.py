"""The second process of runs that a test process shares: one line of JSON on stdin for each run, and on stdout.

A line in has the configuration, the ``port`` of the first process, and a ``fault`` that happens in a step's rendering:
[kind, number of the call]. A line out has the error that ended the run, and the digest of the final tensors.
"""

import contextlib
import hashlib
import itertools
import json
import os
import signal
import sys
from typing import Any

import torch
from tiny_runs import TinyPrior

from nfsd3d.config.schema import Config
from nfsd3d.runs.training_state import training_tensors
from nfsd3d.train import build, run, task
from nfsd3d.train.interrupts import Interrupted
from nfsd3d.train.torchrun import Worker


def digest(task: task.Task) -> str:
    """A digest of everything that a checkpoint has."""
    tensors = training_tensors(task.generator, task.optimizer, task.rng, task.lora)
    parts = (name.encode() + tensor.contiguous().numpy().tobytes() for name, tensor in sorted(tensors.items()))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def failing(original: Any, kind: str, at: int) -> Any:
    """``step_loss`` that fails in its call number ``at``."""
    count = itertools.count(1)

    def step_loss(*arguments: Any) -> Any:
        if next(count) == at:
            if kind == "memory":
                raise torch.OutOfMemoryError("out of memory")
            os.kill(os.getpid(), getattr(signal, kind))
        return original(*arguments)

    return step_loss


def serve() -> None:
    """Runs what stdin asks for."""
    step_loss, build_prior, train = task.step_loss, build.build_prior, run.train
    for line in sys.stdin:
        asked = json.loads(line)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(asked["port"]))
        build.build_prior = (lambda config: TinyPrior()) if asked["tiny"] else build_prior
        task.step_loss = failing(step_loss, *asked["fault"]) if asked["fault"] else step_loss
        seen: list[task.Task] = []

        def training(config: Any, run_dir: Any, task: Any, *rest: Any, seen: list[Any] = seen) -> None:
            seen.append(task)
            train(config, run_dir, task, *rest)

        run.train = training
        answer = {"error": ""}
        try:
            with contextlib.redirect_stdout(sys.stderr):
                run.follow(Config.from_dict(asked["config"]), Worker(1, 2, 1, 2))
        except (Exception, Interrupted) as error:
            answer["error"] = f"{type(error).__name__}: {error}"
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        answer["digest"] = digest(seen[0]) if seen else ""
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
