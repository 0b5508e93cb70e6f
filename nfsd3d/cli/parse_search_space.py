"""Parses the search space of ``nfsd3d tune``, in the syntax of Hydra's sweeps.

``interval(a,b)``, ``range(a,b,step)``, ``choice(a,b)`` and ``tag(log, interval(a,b))`` are searched, within a list too;
``int(...)`` makes whole numbers. Plain lists ``a,b`` of prompts, seeds and sources are what a trial averages over.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import islice

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Sweep, ValueType

from nfsd3d.config.overrides import TEXT_KEYS, each_value, sweeps_in
from nfsd3d.errors import InputError
from nfsd3d.tune.search_space import Dimension, Setting, placeholder

AVERAGED = (*TEXT_KEYS, "seed", "source_run", "source_mesh", "source_image")
"""Settings of which a trial runs all values: its objective is the mean."""
MOST_RUNS = 1000
"""Runs of a trial."""


@dataclass(frozen=True)
class Space:
    """The overrides that all runs share, those that a trial averages over, by key, and those that are searched."""

    shared: list[str]
    averaged: dict[str, list[str]]
    searched: tuple[Setting, ...]


def search_space(overrides: Sequence[Override]) -> Space:
    """The search space of a command line's overrides; of several with the same key the last one counts.

    Raises:
        InputError: nothing is searched, or a setting that cannot be, with its remedy.
    """
    space = Space([], {}, ())
    searched = []
    for override in {override.get_key_element(): override for override in overrides}.values():
        key, line = str(override.key_or_group), str(override.input_line)
        if override.is_hydra_override():
            raise InputError(f"{line}: not for tune; choose the engine with --engine and its options")
        if key == "run_dir":
            raise InputError(f"{line}: tune makes a directory for each run; choose that of all with --output DIR")
        if key in TEXT_KEYS and re.match(r"(choice|interval|range|tag)\(", line.partition("=")[2].lstrip('"')):
            raise InputError(f"{line}: a trial averages over prompts; list them with commas between, prompt=a,b")
        if not any(True for _ in sweeps_in(override.value())):
            space.shared.append(line)
        elif key in AVERAGED:
            if not override.is_discrete_sweep():
                raise InputError(f"{line}: a trial averages over all values; list them, such as {key}=0,1")
            space.averaged[key] = list(islice(each_value(override), MOST_RUNS + 1))
        elif override.value_type == ValueType.SIMPLE_CHOICE_SWEEP:
            values = line.partition("=")[2]
            raise InputError(
                f"{line}: write {key}=choice({values}) to search over the values; only lists of "
                f"{', '.join(AVERAGED)} are averaged over"
            )
        else:
            searched.append(_setting(override))
    runs = math.prod(map(len, space.averaged.values()))
    if not 0 < runs <= MOST_RUNS:
        size = "no" if runs == 0 else f"over {MOST_RUNS:,}"
        raise InputError(f"a trial of {size} runs; list fewer or more values of {', '.join(space.averaged)}")
    if not searched:
        raise InputError("nothing to search: give a setting a range, such as distill.guidance_scale=interval(3,15)")
    return replace(space, searched=tuple(searched))


def _setting(override: Override) -> Setting:
    key, count = override.get_key_element(), sum(1 for _ in sweeps_in(override.value()))
    dimensions: list[Dimension] = []

    def substituted(value: object) -> object:
        """The value with placeholders for the sweeps in it, whose dimensions are noted."""
        if isinstance(value, Sweep):
            index = len(dimensions)
            name = key if count == 1 else f"{key}[{index}]"
            dimensions.append(_dimension(override, value, name))
            return placeholder(index)
        if isinstance(value, list):
            return [substituted(item) for item in value]
        return {k: substituted(v) for k, v in value.items()} if isinstance(value, dict) else value

    template = f"{key}={_text(override, substituted(override.value()))}"
    return Setting(template, tuple(dimensions))


def _dimension(override: Override, sweep: Sweep, name: str) -> Dimension:
    line = override.input_line
    if unknown := sweep.tags - {"log"}:
        raise InputError(f"{line}: no such tag {sorted(unknown)[0]}; there is tag(log, interval(...))")
    log = "log" in sweep.tags
    if isinstance(sweep, ChoiceSweep):
        values = tuple(dict.fromkeys(_text(override, value) for value in sweep.list))
        if len(values) < 2 or log:
            raise InputError(f"{line}: choice needs at least two values, and no tag")
        return Dimension(name, choices=values)
    if isinstance(sweep, IntervalSweep):
        low, high, step = sweep.start, sweep.end, None
    else:
        assert isinstance(sweep, RangeSweep)
        low, high, step = sweep.start, _last(sweep), sweep.step
    if not (low is not None and high is not None and -math.inf < low < high < math.inf):
        raise InputError(f"{line}: needs a lower and a higher end, such as interval(1,10)")
    whole = all(isinstance(number, int) for number in (low, high, step) if number is not None)
    if log and (low <= 0 or (step is not None and not (whole and step == 1))):
        raise InputError(f"{line}: a logarithmic range begins above 0 and has no steps; write tag(log, interval(1,10))")
    return Dimension(name, low, high, step, log, whole)


def _last(sweep: RangeSweep) -> float | None:
    """The last value of a range, whose end Hydra does not count in; None without any."""
    if sweep.start is None or sweep.stop is None or not sweep.step:
        return None
    start, stop, step = (Decimal(str(number)) for number in (sweep.start, sweep.stop, sweep.step))
    last = start + (math.ceil((stop - start) / step) - 1) * step
    return int(last) if isinstance(sweep.start, int) and isinstance(sweep.step, int) else float(last)


def _text(override: Override, value: object) -> str:
    """A value as a command line has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return replace(override, value_type=ValueType.ELEMENT, _value=value).get_value_element_as_str()  # type: ignore[arg-type]
