"""Bootstrap intervals of means, correlations, areas under the ROC curve, and claims tested by intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch
from torch import Tensor

RESAMPLES, PROMPT_RESAMPLES = 2_000, 10_000
"""Bootstrap resamples of images, and of the few prompts of a comparison."""
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over ``count`` values and its bootstrap interval; NaN without values."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return "-" if math.isnan(self.mean) else f"{self.mean:.2f} ±{(self.high - self.low) / 2:.2f}"


def estimate(values: Tensor) -> list[Estimate]:
    """The estimate of each row of ``values`` [T,N] over the N images, which are resampled alike in every row.

    NaN values are left out.
    """
    return _estimates(values.nanmean(1), _resampled_means(values, 0), values.isfinite().sum(1))


def estimate_difference(first: Tensor, second: Tensor, *, paired: bool) -> list[Estimate]:
    """The estimate of each row of ``first`` [T,N] minus that of ``second`` [T,M].

    ``paired``: the N = M images are the same ones; otherwise both are resampled independently.
    """
    if paired:
        return estimate(first - second)
    means = first.nanmean(1) - second.nanmean(1)
    smaller = torch.minimum(first.isfinite().sum(1), second.isfinite().sum(1))
    return _estimates(means, _resampled_means(first, 0) - _resampled_means(second, 1), smaller)


def estimate_over_prompts(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """The estimate of ``values``, one for each prompt; in double precision, from ``PROMPT_RESAMPLES`` resamples."""
    count = len(values)
    if count == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    drawn = torch.from_numpy(np.random.default_rng(0).integers(count, size=(PROMPT_RESAMPLES, count)))
    row = torch.tensor(values, dtype=torch.float64)[None]
    return _estimates(row.mean(1), _means_of(row, drawn), torch.tensor([count]), level)[0]


def _resampled_means(values: Tensor, seed: int) -> Tensor:
    """[T,RESAMPLES] means over images drawn with replacement from the N of ``values`` [T,N]."""
    count = values.shape[1]
    drawn = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(seed))
    return _means_of(values, drawn)


def _means_of(values: Tensor, drawn: Tensor) -> Tensor:
    """[T,R] means over the columns ``drawn`` [R,N] of ``values`` [T,N]."""
    return values[:, drawn].nanmean(2)


def _estimates(means: Tensor, resampled: Tensor, counts: Tensor, level: float = LEVEL) -> list[Estimate]:
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    ends = resampled.double().nanquantile(tails, dim=1)
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
    """[...] the area under the ROC curve of ``score`` [...,h,w] as a detector of ``mask`` [...,h,w] (bool, broadcast).

    That is the probability that a pixel of the mask scores higher than one outside it; ties count one half. NaN where
    the mask is empty or covers everything.
    """
    ranks = torch.from_numpy(scipy.stats.rankdata(score.flatten(-2).numpy(), axis=-1)).to(score.dtype)
    inside = mask.flatten(-2).to(score.dtype)
    positive = inside.sum(-1)
    negative = inside.shape[-1] - positive
    return ((ranks * inside).sum(-1) - positive * (positive + 1) / 2) / (positive * negative)


@dataclass(frozen=True)
class Claim:
    """A statement about the quantity ``of``, and for each timestep whether its interval confirms it.

    ``answers``: "yes" (the interval lies within the claimed bounds), "no" (outside) or "open" (across one).
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
