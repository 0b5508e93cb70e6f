"""The random numbers of a step: forked generators, and the draws of background and shading."""

import torch
from torch import Tensor


def fork(rng: torch.Generator) -> torch.Generator:
    """A new generator on the CPU, seeded by one draw from ``rng``; for draws whose number differs between runs.

    The state of ``rng`` does not depend on how much is drawn from the fork. So methods with the same seed get the same
    cameras, timesteps and noise (common random numbers). A checkpoint that keeps ``rng`` restores its forks too.
    """
    return torch.Generator().manual_seed(int(torch.randint(2**63 - 1, (), generator=rng)))


def draw_shading(rng: torch.Generator, lambertian: float, textureless: float) -> str:
    """ "albedo", "lambertian" or "textureless", for all views of a step.

    ``lambertian`` is the probability of shading with a light, ``textureless`` that of a white surface among those.
    """
    lit, white = torch.rand(2, generator=rng).tolist()
    if lit >= lambertian:
        return "albedo"
    return "textureless" if white < textureless else "lambertian"


def draw_background(rng: torch.Generator, views: int, probability: float) -> tuple[Tensor, Tensor]:
    """[views,3] a random colour per view, uniform in [0,1]; [views] (bool) the views that have it as background.

    The other views keep the generator's own background.
    """
    # Stratified: one uniform number, spread evenly over the views. Probability 0.5 means half of every batch.
    uniform = (torch.rand((), generator=rng) + torch.arange(views) / views) % 1
    return torch.rand(views, 3, generator=rng), uniform < probability
