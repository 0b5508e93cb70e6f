"""Settings of the optimisation."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_serializer

from nfsd3d.errors import InputError
from nfsd3d.settings.schedules import crossing, highest
from nfsd3d.settings.types import Fraction, FractionSchedule, ImageSizes, WeightSchedule, Window


@dataclass(frozen=True, kw_only=True)
class LearningRateSettings:
    """Learning rates of the generator's parameter groups; a generator takes exactly its own (``RATES``)."""

    encoding: PositiveFloat | None = None
    """Learning rate of a NeRF's hash tables."""
    network: PositiveFloat | None = None
    """Learning rate of a NeRF's density and colour MLP."""
    geometry: PositiveFloat | None = None
    """Learning rate of a mesh's vertices, in world units."""
    texture: PositiveFloat | None = None
    """Learning rate of a mesh's texture, whose values lie in [0, 1]."""
    background: PositiveFloat | None = None
    """Learning rate of a scene's background network."""
    latent: PositiveFloat | None = None
    """Learning rate of latent codes."""
    image: PositiveFloat | None = None
    """Learning rate of pixels."""

    @model_serializer
    def given(self) -> dict[str, float]:
        """The rates that are set, by name."""
        return {name: rate for name, rate in vars(self).items() if rate is not None}


@dataclass(frozen=True, kw_only=True)
class ShadingSettings:
    """Light in training views."""

    lambertian: FractionSchedule
    """Probability that a step is lit instead of plain albedo; ``[[0.2, 0.0], [0.2, 0.75]]`` starts after a fifth."""
    textureless: Fraction
    """Probability that a lit step has a white surface, which leaves the gradient to the shape."""
    normals: Fraction = 0.0
    """Probability that a lit step shows normals as colours (Fantasia3D, 2303.13873); 1 - textureless at most."""
    ambient: Fraction
    """Share of ambient light in a lit step; the rest is diffuse."""

    def __post_init__(self) -> None:
        """Checks the probabilities' sum.

        Raises:
            InputError: more than all lit steps are white or show normals, or no step is lit.
        """
        if self.normals > 0 and highest(self.lambertian) == 0:
            raise InputError(
                f"train.shading.normals={self.normals}: is the share of lit steps, of which there are none; raise "
                "train.shading.lambertian, too"
            )
        if self.textureless + self.normals > 1:
            raise InputError(
                f"train.shading.normals={self.normals}: is more than the lit steps that "
                f"train.shading.textureless={self.textureless} leaves; lower one of them"
            )


@dataclass(frozen=True, kw_only=True)
class RegularizerSettings:
    """Weights of the regularisers over training; 0 switches one off."""

    sparsity: WeightSchedule
    """Weight of mean sqrt(opacity^2 + .01); more removes floaters, too much empties the scene."""
    opaque: WeightSchedule
    """Weight of the opacity's binary entropy; more pushes pixels to fully empty or solid."""
    orient: WeightSchedule
    """Weight of sum w relu(n . d)^2, for normals that face the camera (Ref-NeRF, 2112.03907)."""
    z_variance: WeightSchedule
    """Weight of the depth variance along solid rays; more makes surfaces thinner (HiFA, 2305.18766)."""


@dataclass(frozen=True, kw_only=True)
class DivergedSettings:
    """When a run is stopped and rolled back; a gradient that is not finite always stops it."""

    after: Fraction
    """Fraction of training before which the limits are not checked."""
    window: Window
    """How long a limit is exceeded before the run stops: below 1 a fraction of training, else a number of steps."""
    opacity_below: Fraction
    """Mean opacity below which the scene counts as empty."""
    opacity_above: Fraction
    """Mean opacity above which the scene counts as full."""
    values_above: PositiveFloat = 50.0
    """Largest absolute value of latents (of variance 1), or of images scaled to [-1, 1], that counts as normal."""
    growth: Annotated[float, Field(gt=1)] = 1000.0
    """Largest multiple of the run's earlier gradient norms, and of its earlier parameters, that counts as normal."""
    retries: NonNegativeInt = 0
    """How often a diverged run goes back to its last sound checkpoint and tries again."""
    retry_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Factor on all learning rates at each retry."""

    def __post_init__(self) -> None:
        below, above = self.opacity_below, self.opacity_above
        if below >= above:
            raise InputError(f"train.diverged: opacity_below={below} must lie below opacity_above={above}")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Optimisation."""

    steps: PositiveInt
    """Number of optimisation steps."""
    batch_size: Annotated[int, Field(ge=1, le=256)]
    """Views per step, or number of images with ``generator=latent|image``; more is smoother, slower and larger."""
    resolution: ImageSizes
    """Height and width of rendered views in pixels, resized to the prior's; one number with generator=image."""
    t_min: FractionSchedule
    """Lowest noise level, as a fraction of the prior's timesteps; lower refines detail."""
    t_max: FractionSchedule
    """Highest noise level, as a fraction of the prior's timesteps; higher changes the global shape."""
    learning_rate: LearningRateSettings
    """AdamW's learning rates, before ``learning_rate_factor``."""
    learning_rate_factor: WeightSchedule
    """Factor on all learning rates over training."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    """AdamW's decay rates of the running means of the gradient and of its square."""
    eps: PositiveFloat
    """AdamW's eps; gradients well below it make smaller steps."""
    weight_decay: NonNegativeFloat
    """AdamW's weight decay, on all parameters."""
    gradient_clip: PositiveFloat | None
    """Largest norm of the gradient of all parameters; null: no clipping."""
    shading: ShadingSettings
    """Light in training views."""
    random_background: Fraction
    """Probability that a view gets a random plain background, which shows where the object is transparent."""
    regularizers: RegularizerSettings
    """Weights of the losses besides the distillation."""
    preview_every: PositiveInt
    """Steps between previews."""
    preview_size: Annotated[int, Field(ge=16, le=1024)]
    """Height and width of each preview view in pixels."""
    log_every: PositiveInt
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: PositiveInt
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt
    """Number of most recent checkpoints to keep."""
    tensorboard: bool
    """Write TensorBoard events besides metrics.jsonl."""
    diverged: DivergedSettings
    """When a run is stopped as empty, full or out of range, and how often it is retried."""

    def __post_init__(self) -> None:
        window = self.diverged.window
        if window > self.steps:
            raise InputError(
                f"train.diverged.window={window}: is longer than the run (train.steps={self.steps}), so that nothing "
                "would stop it; set a fraction of the run, such as 0.05"
            )
        when = crossing(self.t_min, self.t_max)
        if when is not None:
            raise InputError(
                f"train: t_min={self.t_min} must lie below t_max={self.t_max}, and at {when:g} of training it does not"
            )
