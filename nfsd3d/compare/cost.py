"""What a method costs before it has run: evaluations of the network, which the timesteps and the cameras decide."""

from collections.abc import Callable

import torch
from torch import Tensor

from nfsd3d.config.schema import Config
from nfsd3d.distill.gradient import threshold_step
from nfsd3d.distill.methods import METHODS, Method
from nfsd3d.train.plan import plan_at

CHEAPEST = 2.0
"""Evaluations for a view and step of SDS, which no method undercuts: the prompt's and the empty prompt's."""

TIMESTEPS = 1000
"""Training steps of all the priors there are."""

NOISING: dict[str, Callable[[Tensor], Tensor]] = {
    "random": torch.zeros_like,
    "interval": lambda t: -(-(t - 50).clamp(min=0) // 200) + 1,
    "inversion": lambda t: 2 * -(-t.clamp(min=1) // 100),
}
"""Evaluations of `nfsd3d.prior.schedule.NOISINGS` at timesteps [N] (int64) of 1,000."""


def evaluations_per_view(config: Config) -> float:
    """The mean number of evaluations for a view and step of a whole run.

    One for each branch where it is active, those of the noising, two for Perp-Neg in views that are not from overhead,
    and one for the step that VSD's second network trains (forward and backward count as one).
    """
    steps = config.train.steps
    return sum(_expected(config, step / steps) for step in range(steps)) / steps


def equal_steps(config: Config) -> int:
    """The number of steps with which a run costs as many evaluations as SDS in ``config.train.steps``; at most that."""
    return max(1, round(config.train.steps * min(1.0, CHEAPEST / evaluations_per_view(config))))


def _expected(config: Config, progress: float) -> float:
    method, plan = METHODS[config.distill.method].at(progress), plan_at(config.train, progress)
    low, high = (min(round(fraction * TIMESTEPS), TIMESTEPS - 1) for fraction in (plan.t_min, plan.t_max))
    t = torch.arange(low, high + 1)
    cost = float(NOISING[method.noising](t).double().mean()) + _branches(method, t, config.distill.threshold)
    if config.prompts.perp_neg:
        cost += 2 * len(method.condition_pairs) * (1 - config.cameras.overhead_probability)
    return cost + method.needs_lora


def _branches(method: Method, t: Tensor, threshold: float) -> float:
    step = threshold_step(threshold, TIMESTEPS)
    return sum(len(method.rows(branch, t, step)) for branch in method.branches) / len(t)
