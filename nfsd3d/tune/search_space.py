"""The search space of a tuning: dimensions, and the settings whose values contain them."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Dimension:
    """A number or a choice that is searched, by the name that the study has for it.

    With ``choices`` it is one of these texts, else a number from ``low`` to ``high``, both included: ``whole`` or not,
    in multiples of ``step`` from ``low``, or uniform in its logarithm (``log``).
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()

    @property
    def ends(self) -> tuple[object, ...]:
        """All choices, or both ends of the interval: what is checked before the search."""
        return self.choices or tuple(int(end) if self.whole else end for end in (self.low, self.high))

    def __str__(self) -> str:
        if self.choices:
            return " or ".join(self.choices)
        step = f", in steps of {self.step:g}" if self.step is not None else ""
        return f"{self.low:g} to {self.high:g}{step}{', logarithmic' * self.log}"


@dataclass(frozen=True)
class Setting:
    """An override ``key=value`` as a ``template``, in which `placeholder` stands for each of its dimensions."""

    template: str
    dimensions: tuple[Dimension, ...]

    def override(self, values: Mapping[str, object]) -> str:
        """The override with the values of its dimensions, given by their names."""
        text = self.template
        for index, dimension in enumerate(self.dimensions):
            text = text.replace(placeholder(index), str(values[dimension.name]))
        return text


def placeholder(index: int) -> str:
    """The word of a template for the dimension with this index; Hydra's grammar leaves it as it is."""
    return f"searched{index}value"
