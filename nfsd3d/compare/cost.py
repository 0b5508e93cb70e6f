"""The expected cost of a run in function evaluations (NFE) of the denoiser, from its settings alone."""

import torch

from nfsd3d.config.schema import Config
from nfsd3d.distill.gradient import threshold_step
from nfsd3d.distill.methods import find_method
from nfsd3d.train.plan import plan_at

CHEAPEST = 2.0
"""NFE for a view and step of SDS, the cheapest method: one given the prompt, one given the empty prompt."""

TIMESTEPS = 1000
"""Training steps of all priors."""


def evaluations_per_view(config: Config) -> float:
    """The mean NFE for a view and step of a whole run.

    Counts `nfsd3d.distill.methods.Method.nfe`, and Perp-Neg's two predictions for views that are not from overhead.
    """
    steps = config.train.steps
    return sum(_expected(config, step / steps) for step in range(steps)) / steps


def equal_steps(config: Config) -> int:
    """The number of steps with which a run has the NFE of SDS in ``config.train.steps``; at most that number."""
    return max(1, round(config.train.steps * min(1.0, CHEAPEST / evaluations_per_view(config))))


def _expected(config: Config, progress: float) -> float:
    method, plan = find_method(config.distill.method).at(progress), plan_at(config.train, progress)
    low, high = (min(round(fraction * TIMESTEPS), TIMESTEPS - 1) for fraction in (plan.t_min, plan.t_max))
    cost = method.nfe(torch.arange(low, high + 1), TIMESTEPS, threshold_step(config.distill.threshold, TIMESTEPS))
    if config.prompts.perp_neg:
        cost += 2 * len(method.condition_pairs) * (1 - config.cameras.overhead_probability)
    return cost
