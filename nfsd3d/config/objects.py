"""Objects in place of the names of methods, priors and generators: each is registered under a name of its own."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

from nfsd3d.distill import methods
from nfsd3d.distill.methods import Method
from nfsd3d.generators import plugins as generators
from nfsd3d.generators.base import ImageGenerator
from nfsd3d.generators.plugins import GeneratorRow
from nfsd3d.plugins.table import Table
from nfsd3d.prior import priors
from nfsd3d.prior.priors import PriorRow

_registered: dict[tuple[str, int], tuple[str, object]] = {}


def register_object(setting: str, given: object) -> str:
    """The name of ``given`` for the ``setting`` distill, prior or generator: itself, or one it is registered under.

    The same object keeps its name for as long as the process runs. It is that of its function, or of its class, with a
    number where that is taken.

    Raises:
        TypeError: neither a name nor an object of the kind.
    """
    if isinstance(given, str):
        return given
    if isinstance(given, type):
        raise TypeError(f"{setting}: {given.__name__} is a class; give an object of it")
    table, row_of = _TABLES[setting]
    key = (setting, id(given))  # the object is kept, so that no other one gets its id
    if key not in _registered:
        name = _free_name(table, _name_of(given))
        table.register(name, row_of(given))
        _registered[key] = name, given
    return _registered[key][0]


def _name_of(given: object) -> str:
    function = getattr(given, "function", None) or getattr(given, "build", None) or given
    name = getattr(function, "__name__", type(given).__name__)
    return re.sub(r"\W+", "_", name).strip("_") if re.match(r"[A-Za-z]", name) else "custom"


def _free_name(table: Table[Any], name: str) -> str:
    number, found = 1, name
    while found in table or found in table.reserved:
        number += 1
        found = f"{name}-{number}"
    return found


def _method_row(given: object) -> Method:
    if not isinstance(given, Method):
        raise TypeError(f"method: {type(given).__name__} is none; give a name, or a nfsd3d.distill.methods.Method")
    return given


def _prior_row(given: object) -> PriorRow:
    if isinstance(given, PriorRow):
        return given
    if missing := [name for name in ("predict_eps", "encode", "embed", "schedule") if not hasattr(given, name)]:
        raise TypeError(
            f"prior: {type(given).__name__} has no {', '.join(missing)}; give a name, a nfsd3d.prior.priors.PriorRow, "
            "or an object as nfsd3d.prior.base.Prior describes it"
        )
    return PriorRow(lambda settings, device, dtype: given)  # type: ignore[arg-type,return-value]


def _generator_row(given: object) -> GeneratorRow:
    if isinstance(given, GeneratorRow):
        return given
    rates = getattr(given, "learning_rates", None)
    if not isinstance(given, ImageGenerator) or rates is None:
        raise TypeError(
            f"generator: {type(given).__name__} is none; give a name, a nfsd3d.generators.plugins.GeneratorRow, or an "
            "ImageGenerator with the attribute learning_rates"
        )
    return GeneratorRow(lambda options, facts: copy.deepcopy(given), rates)  # its parameters stay as they are


_TABLES: dict[str, tuple[Table[Any], Callable[[object], object]]] = {
    "distill": (methods.TABLE, _method_row),
    "prior": (priors.TABLE, _prior_row),
    "generator": (generators.TABLE, _generator_row),
}
