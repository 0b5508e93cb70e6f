"""The loggers that ``logger=NAME`` chooses from.

Importing this file imports none of their packages.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from nfsd3d.callbacks.callback import Callback
from nfsd3d.errors import InputError
from nfsd3d.plugins.table import Table


@dataclass(frozen=True)
class LoggerRow:
    """A logger: how it is made, the ``package`` that it imports, and how to install that."""

    build: Callable[[], Callback]
    package: str
    install: str


def _built_in(module: str, name: str) -> Callable[[], Callback]:
    def build() -> Callback:
        logger: Callback = getattr(importlib.import_module(f"nfsd3d.loggers.{module}"), name)()
        return logger

    return build


LOGGERS = {
    "tensorboard": LoggerRow(_built_in("tensorboard", "TensorBoard"), "tensorboard", "pip install tensorboard"),
    "wandb": LoggerRow(_built_in("wandb", "WeightsAndBiases"), "wandb", "pip install 'nfsd3d[wandb]'"),
    "mlflow": LoggerRow(_built_in("mlflow", "MLflow"), "mlflow", "pip install 'nfsd3d[mlflow]'"),
}

TABLE: Table[LoggerRow] = Table("logger", "logger", "nfsd3d.loggers", LOGGERS, LoggerRow)
"""Built-in loggers, registered ones, and those of installed packages."""

register = TABLE.register
unregister = TABLE.unregister


def names_of(logger: str | Sequence[str] | None, tensorboard: bool) -> list[str]:
    """The loggers that the settings ``logger`` and ``train.tensorboard`` choose, each once."""
    given = [] if logger is None else [logger] if isinstance(logger, str) else logger
    return list(dict.fromkeys([*(["tensorboard"] if tensorboard else []), *given]))


def check(names: Sequence[str], tensorboard: bool) -> None:
    """Raises `InputError` for a logger that there is not, or whose package is not installed."""
    for name in names:
        row = TABLE.find(name)
        if find_spec(row.package) is None:
            asked = "train.tensorboard=true" if name == "tensorboard" and tensorboard else f"logger={name}"
            instead = "set it to false" if name == "tensorboard" and tensorboard else "leave it out"
            raise InputError(f"{asked}: {row.package} is not installed: {row.install}, or {instead}")


def build(names: Sequence[str]) -> list[Callback]:
    """The loggers of these names."""
    return [TABLE.find(name).build() for name in names]
