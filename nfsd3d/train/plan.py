"""What the schedules say about one step, and the random choices that a step makes besides cameras and noise."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nfsd3d.config.schema import TrainSettings
from nfsd3d.settings.schedules import milestone_at, value_at
from nfsd3d.train.memory.chunking import ChunkSizes


@dataclass(frozen=True)
class StepPlan:
    """One step's settings.

    ``progress`` is the fraction of training, in [0, 1). ``views`` square images of ``resolution`` pixels; timesteps
    between the fractions ``t_min`` and ``t_max`` of the model's training steps; probabilities ``lambertian`` (of
    shading with a light), ``textureless`` (of a white surface, among those) and ``random_background`` (of a view before
    a plain random colour); ``ambient`` light; ``learning_rate_factor``; weights of the regularisers. ``chunks`` says
    how much of it is computed at once.
    """

    progress: float
    views: int
    resolution: int
    t_min: float
    t_max: float
    lambertian: float
    textureless: float
    ambient: float
    random_background: float
    learning_rate_factor: float
    regularizers: dict[str, float]
    chunks: ChunkSizes = field(default_factory=ChunkSizes)


def plan_at(train: TrainSettings, progress: float) -> StepPlan:
    """The plan of the step at ``progress``, a fraction of training in [0, 1)."""
    shading, weights = train.shading, train.regularizers
    return StepPlan(
        progress=progress,
        views=train.batch_size,
        resolution=milestone_at(train.resolution, progress),
        t_min=value_at(train.t_min, progress),
        t_max=value_at(train.t_max, progress),
        lambertian=value_at(shading.lambertian, progress),
        textureless=shading.textureless,
        ambient=shading.ambient,
        random_background=train.random_background,
        learning_rate_factor=value_at(train.learning_rate_factor, progress),
        regularizers={
            "sparsity": value_at(weights.sparsity, progress),
            "opaque": value_at(weights.opaque, progress),
            "orient": value_at(weights.orient, progress),
            "z_variance": value_at(weights.z_variance, progress),
        },
    )


def draw_shading(rng: torch.Generator, lambertian: float, textureless: float) -> str:
    """ "albedo", "lambertian" or "textureless", for all views of a step."""
    lit, white = torch.rand(2, generator=rng).tolist()
    if lit >= lambertian:
        return "albedo"
    return "textureless" if white < textureless else "lambertian"


def draw_background(rng: torch.Generator, views: int, probability: float) -> tuple[Tensor, Tensor]:
    """[views,3] a random colour for each view, uniform in [0,1], and [views] (bool) which views it stands behind.

    The other views have the generator's own background.
    """
    # One number for all coins, spread evenly over [0,1): every view has its chance, and half means half of a batch.
    coins = (torch.rand((), generator=rng) + torch.arange(views) / views) % 1
    return torch.rand(views, 3, generator=rng), coins < probability
