"""Means with intervals, correlations, areas under the curve, and the verdicts that follow from the intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import scipy.stats
import torch
from torch import Tensor

RESAMPLES = 2000
"""Resamplings behind an interval."""


@dataclass(frozen=True)
class Estimate:
    """A mean over ``count`` pictures and its bootstrap 95 % interval; not a number where there was none."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return "-" if math.isnan(self.mean) else f"{self.mean:.2f} ±{(self.high - self.low) / 2:.2f}"


def estimate(values: Tensor) -> list[Estimate]:
    """The estimate of each row of ``values`` [T,N], over the N pictures; values that are not numbers are left out.

    The pictures are resampled, the same in every row.
    """
    return _estimates(values.nanmean(1), _resampled(values, 0), values.isfinite().sum(1))


def estimate_difference(first: Tensor, second: Tensor, *, paired: bool) -> list[Estimate]:
    """The estimate of each row of ``first`` [T,N] minus that of ``second`` [T,M].

    ``paired``: the N = M pictures are the same ones; otherwise both are resampled on their own.
    """
    if paired:
        return estimate(first - second)
    means = first.nanmean(1) - second.nanmean(1)
    smaller = torch.minimum(first.isfinite().sum(1), second.isfinite().sum(1))
    return _estimates(means, _resampled(first, 0) - _resampled(second, 1), smaller)


def _resampled(values: Tensor, seed: int) -> Tensor:
    """[T,RESAMPLES] means over pictures drawn with replacement from the N of ``values`` [T,N]."""
    count = values.shape[1]
    drawn = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(seed))
    return values[:, drawn].nanmean(2)


def _estimates(means: Tensor, resampled: Tensor, counts: Tensor) -> list[Estimate]:
    ends = resampled.double().nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=1)
    columns = (means.tolist(), *ends.tolist(), counts.tolist())
    return [Estimate(*row) for row in zip(*columns, strict=True)]


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """[...] Pearson's correlation of [...,C,h,w] with [...,C,h,w] (broadcast) over the last three dimensions."""
    a, b = (x - x.mean((-3, -2, -1), keepdim=True) for x in (a, b))
    return (a * b).mean((-3, -2, -1)) / (size(a) * size(b))


def size(a: Tensor) -> Tensor:
    """[...] root mean square of [...,C,h,w] over the last three dimensions."""
    return a.square().mean((-3, -2, -1)).sqrt()


def area_under_curve(score: Tensor, mask: Tensor) -> Tensor:
    """[...] how well ``score`` [...,h,w] finds ``mask`` [...,h,w] (bool, broadcast): the area under the ROC curve.

    The probability that a pixel of the mask scores higher than one outside it, ties counting one half. Not a number
    where the mask is empty or everything.
    """
    ranks = torch.from_numpy(scipy.stats.rankdata(score.flatten(-2).numpy(), axis=-1)).to(score.dtype)
    inside = mask.flatten(-2).to(score.dtype)
    positive = inside.sum(-1)
    negative = inside.shape[-1] - positive
    return ((ranks * inside).sum(-1) - positive * (positive + 1) / 2) / (positive * negative)


@dataclass(frozen=True)
class Claim:
    """A statement about ``of``, and by timestep whether the interval lies where the statement has it.

    ``answers``: "yes", "no" (the interval lies outside) or "open" (it contains the bound).
    """

    statement: str
    of: str
    answers: Mapping[int, str]

    @property
    def verdict(self) -> str:
        """ "holds" at all timesteps, "holds in part", "does not hold" at any, or "not decided"."""
        right = [t for t, answer in self.answers.items() if answer == "yes"]
        if len(right) == len(self.answers):
            return "holds"
        if right:
            return f"holds in part (t = {', '.join(map(str, right))})"
        return "not decided" if "open" in self.answers.values() else "does not hold"


def claim(
    statement: str,
    of: str,
    timesteps: Sequence[int],
    values: Sequence[Estimate],
    *,
    above: float = -math.inf,
    below: float = math.inf,
) -> Claim:
    """The claim that a quantity lies between ``above`` and ``below`` at each timestep."""
    pairs = zip(timesteps, values, strict=True)
    return Claim(statement, of, {t: _answer(value, above, below) for t, value in pairs})


def _answer(value: Estimate, above: float, below: float) -> str:
    if value.low > above and value.high < below:
        return "yes"
    return "no" if value.high <= above or value.low >= below else "open"
