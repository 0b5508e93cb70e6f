"""The settings of one step: every schedule of the configuration, evaluated at a fraction of training."""

from dataclasses import dataclass, field, replace

from nfsd3d.callbacks.steering import Steering
from nfsd3d.settings.schedules import milestone_at, value_at
from nfsd3d.settings.train import TrainSettings
from nfsd3d.train.memory.chunking import ChunkSizes


@dataclass(frozen=True)
class StepPlan:
    """One step's settings.

    ``progress`` is the fraction of training, in [0, 1). ``views`` square images have ``resolution`` pixels a side.
    Timesteps lie between the fractions ``t_min`` and ``t_max`` of the model's training steps. Probabilities:
    ``lambertian`` of shading with a light; among those ``textureless`` of a white surface and ``normals`` of normals as
    colours; ``random_background`` of a view on a plain random colour. ``ambient`` is the ambient light in [0, 1].
    ``learning_rate_factor`` multiplies the learning rates, ``regularizers`` holds the weights of the regularisers.
    ``chunks`` are the chunk sizes.
    ``guidance_scale`` replaces the method's schedule, where a run is steered.
    """

    progress: float
    views: int
    resolution: int
    t_min: float
    t_max: float
    lambertian: float
    textureless: float
    normals: float
    ambient: float
    random_background: float
    learning_rate_factor: float
    regularizers: dict[str, float]
    chunks: ChunkSizes = field(default_factory=ChunkSizes)
    guidance_scale: float | None = None

    def steered(self, steering: Steering) -> "StepPlan":
        """The plan with what ``steering`` replaces."""
        return replace(
            self,
            guidance_scale=steering.guidance_scale,
            learning_rate_factor=self.learning_rate_factor * steering.learning_rate_factor,
            t_min=self.t_min if steering.t_min is None else steering.t_min,
            t_max=self.t_max if steering.t_max is None else steering.t_max,
        )


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
        normals=shading.normals,
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
