"""Work that diffusers does while it is imported, and a run seldom needs, done when it is needed.

Design note. Problem: `import diffusers` looks through the files of all installed packages for the names of three that
are rarely there, and imports scipy's statistics for one kind of sampling schedule: a tenth of the time from a command
to its first step. Idea: the first becomes a mapping that is computed when it is read, the second a module that is
executed when one of its names is read. Results are the same. Measured:
docs/benchmarks.md, "On a CPU, beside an earlier revision".
"""

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from types import ModuleType

DEFERRED = "scipy.stats"


def import_diffusers() -> None:
    """Imports the part of diffusers that looks for packages, with both kinds of work put off; not a second time."""
    if "diffusers" in sys.modules:
        return
    _execute_when_used(DEFERRED)
    names_of_packages = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = lambda: _DeferredMapping(names_of_packages)
    try:
        importlib.import_module("diffusers.utils.import_utils")
    finally:
        importlib.metadata.packages_distributions = names_of_packages


def _execute_when_used(name: str) -> None:
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _DeferredModule
    sys.modules[name] = module


class _DeferredModule(ModuleType):
    """A module that is executed when one of its names is read.

    Unlike that of `importlib.util.LazyLoader` it has its ``__file__`` and the like before: `inspect` reads those of all
    modules, whenever torch registers an operation.
    """

    def __getattr__(self, name: str) -> object:
        spec = self.__spec__
        if name.startswith("__") or spec is None or spec.loader is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec.loader.exec_module(self)
        return getattr(self, name)


class _DeferredMapping(Mapping[str, list[str]]):
    """The mapping that ``compute`` gives, called when it is first read."""

    def __init__(self, compute: Callable[[], Mapping[str, list[str]]]) -> None:
        self._compute = compute

    @cached_property
    def _found(self) -> Mapping[str, list[str]]:
        return self._compute()

    def __getitem__(self, name: str) -> list[str]:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
