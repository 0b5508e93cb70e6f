"""Every setting of a run as one typed, documented, immutable tree.

The values come from the YAML files in ``configs/`` (see `nfsd3d.config.compose`); nothing here has a second default,
except the settings that are off unless asked for, and those that finished runs lack because they are newer. Validation
is strict: no string becomes a number, no unknown key passes. Angles are degrees (``_deg``), lengths are world units
(the object lives in the cube of half-width ``generator.radius``), and fractions of training run from 0 to 1.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    NonNegativeFloat,
    PlainSerializer,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from nfsd3d.config.errors import describe_errors
from nfsd3d.config.schedules import Milestones, Schedule, crossing, highest, validate_milestones, validate_schedule
from nfsd3d.distill.methods import TABLE as METHODS
from nfsd3d.errors import InputError
from nfsd3d.generators.plugins import TABLE as GENERATORS

MAX_PROMPT_LENGTH = 1000
TEXTURE_SIZES = (64, 4096)
"""Texels per side of a mesh's texture, from and to."""


def _complete_error(message: str, **values: object) -> PydanticCustomError:
    """An error whose message is told as it is: it names its settings itself, being about more than one value."""
    return PydanticCustomError("complete", message, values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_knots(value: object, is_value: Callable[[object], bool], noun: str) -> Any:
    """A constant as it is, or a list of (fraction of training, value) knots; only types are checked."""
    if is_value(value):
        return value
    if not isinstance(value, list | tuple):
        raise PydanticCustomError("knots", "must be {noun} or a list of [fraction of training, value]", {"noun": noun})
    knots = []
    for knot in value:
        if not isinstance(knot, list | tuple) or len(knot) != 2 or not _is_number(knot[0]) or not is_value(knot[1]):
            raise PydanticCustomError("knots", "each knot must be [fraction of training, {noun}]", {"noun": noun})
        knots.append((float(knot[0]), knot[1]))
    return knots


def _check_schedule(low: float, high: float) -> PlainValidator:
    """Validator of a schedule whose values lie in ``low..high``."""

    def check(value: object, info: ValidationInfo) -> Schedule:
        return validate_schedule(_check_knots(value, _is_number, "a number"), info.field_name or "", low, high)

    return PlainValidator(check)


def _check_milestones(low: int) -> PlainValidator:
    """Validator of milestones whose values are at least ``low``."""

    def check(value: object, info: ValidationInfo) -> Milestones:
        return validate_milestones(_check_knots(value, _is_whole, "a whole number"), info.field_name or "", low)

    return PlainValidator(check)


def _check_device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise PydanticCustomError("range", "must be cpu, cuda or cuda:N")
    return name


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise PydanticCustomError("range", "must be [low, high] with low <= high")
    return bounds


def _check_prompt_text(text: str) -> str:
    if len(text) > MAX_PROMPT_LENGTH:
        message = "has {length} characters, the limit is {limit}: shorten it"
        raise PydanticCustomError("prompt", message, {"length": len(text), "limit": MAX_PROMPT_LENGTH})
    return text


def _check_prompt(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("prompt", 'is empty: say what to make, for example prompt="a red mushroom"')
    return _check_prompt_text(text)


def _check_mesh_threshold(value: object) -> Any:
    if value == "auto" or (_is_number(value) and value > 0):  # type: ignore[operator]
        return value
    raise PydanticCustomError("threshold", "must be auto or a density above 0")


def _check_texture_size(value: int) -> int:
    low, high = TEXTURE_SIZES
    if value and not low <= value <= high:
        message = "must be 0 (vertex colours, no texture) or from {low} to {high}"
        raise PydanticCustomError("texture_size", message, {"low": low, "high": high})
    return value


def _check_even(value: int) -> int:
    if value % 2:
        raise PydanticCustomError("even", "must be even (video frames are)")
    return value


Fraction = Annotated[float, Field(ge=0, le=1)]
# A validator of one's own needs a serialiser of one's own: as it is.
_as_it_is = PlainSerializer(lambda value: value, return_type=Any)
FractionSchedule = Annotated[Schedule, _check_schedule(0.0, 1.0), _as_it_is]
WeightSchedule = Annotated[Schedule, _check_schedule(0.0, math.inf), _as_it_is]
ImageSizes = Annotated[Milestones, _check_milestones(8), _as_it_is]
PositiveRange = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ordered)]
ElevationDeg = Annotated[float, Field(ge=-90, le=90)]
ElevationRange = Annotated[tuple[ElevationDeg, ElevationDeg], AfterValidator(_ordered)]


class Settings(BaseModel):
    """Base of the tree: immutable, strict types, finite numbers, no unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class MachineConfig(Settings):
    """Where the run computes, and how precisely."""

    name: Literal["cpu", "cuda"]
    """The preset this came from (``machine=cpu|cuda``)."""
    device: Annotated[str, AfterValidator(_check_device)]
    """A torch device: ``cpu``, ``cuda`` or ``cuda:N``."""
    precision: Literal["float32", "bfloat16", "float16"]
    """Number format of the prior's networks; gradients and the generator stay in float32. With another than float32 and
    ``backend.field=triton`` a GPU multiplies the small network of the field in tensor cores, whose factors are rounded
    to TF32; sums and what is stored stay in float32."""
    rays_per_chunk: Annotated[int, Field(ge=256)] | None = None
    """Pixels of a step's views that are rendered together; they are rendered again in the backward pass, which costs
    time and bounds the memory. null: all, and nothing twice."""
    unet_batch_size: PositiveInt | None = None
    """Latents or images that the prior's networks see together; null: all of a step's."""
    checkpoint_encoder: bool = False
    """Compute the encoder's activations again in the backward pass instead of keeping them: a third more encoder time
    for most of its memory."""
    compile: Literal["auto"] | bool = "auto"
    """torch.compile for the prior's networks, recorded as CUDA graphs on a GPU. auto: for Stable Diffusion on CUDA."""
    memory_gb: PositiveFloat | None = None
    """On CUDA, what a run's steps may take by prediction, in units of 2^30 bytes: the chunks above are made smaller
    before the start until they fit into it. null: what is free."""


class BackendConfig(Settings):
    """Which implementation computes the field (hash encoding and network) and the samples along rays."""

    field: Literal["torch", "numba", "triton", "tcnn"]
    """Hash encoding: torch (reference), numba (CPU), triton (CUDA, the network too), tcnn (CUDA, tiny-cuda-nn)."""
    sampler: Literal["torch", "numba", "triton", "nerfacc"]
    """Ray sampler: torch (reference), numba (CPU), triton (CUDA; composites the samples too), nerfacc (CUDA)."""


class DistillConfig(Settings):
    """The distillation method: how noise predictions become a gradient on the latents."""

    method: Annotated[str, Field(min_length=1)]
    """A row of `nfsd3d.distill.methods.METHODS`: nfsd (2310.17590), sds (2209.14988), csd (2310.19415), vsd
    (2305.16213), ism (2311.11284), sdi (2405.15891), bridge (2406.09417), or dds (2304.07090, edits a source)."""
    guidance_scale: WeightSchedule
    """s in ``eps_uncond + s * (eps_cond - eps_uncond)``, over training; the one convention everywhere."""
    guidance_factor: WeightSchedule = 1.0
    """Factor on s over training, which comes with a recipe: guidance alone makes things thick and colours pure."""
    weighting: Literal["sigma2", "uniform", "sigma_over_alpha", "sigma_alpha"]
    """w(t): ``sigma2`` is 1 - alpha_bar (the usual one)."""
    threshold: Fraction = 0.2
    """NFSD: below this fraction of the model's training timesteps delta_D is eps_uncond itself (the paper: 200 of
    1000). The other methods have no threshold."""
    lora_rank: PositiveInt = 4
    """VSD: rank of the second network's low-rank adaptation."""
    lora_learning_rate: PositiveFloat = 1e-4
    """VSD: of the second network."""
    camera_dropout: Fraction = 0.1
    """VSD: probability that the second network trains without knowing the camera."""
    better_suffix: str = ", detailed high resolution, high quality, sharp"
    """Bridge: what follows the prompt at the end that the second half goes to."""
    worse_suffix: str = (
        ", oversaturated, smooth, pixelated, cartoon, foggy, hazy, blurry, bad structure, noisy, malformed"
    )
    """Bridge: what follows the prompt at the end that the second half comes from."""


class PriorConfig(Settings):
    """The pretrained latent diffusion model."""

    name: Annotated[str, Field(min_length=1)]
    """A preset: shapes (embedded in the package), sd15, sd21, sd21-768."""
    model: Annotated[str, Field(min_length=1)] | None
    """Instead of the preset's weights: a hub id, a local folder in the diffusers layout, or a .safetensors file."""
    layout: Annotated[str, Field(min_length=1)] | None = None
    """Beside a single file: a hub id or a folder with its configurations and tokenizer; null: the preset's."""
    vae: Annotated[str, Field(min_length=1)] | None = None
    """Instead of the model's autoencoder: a hub id or a folder, for instance of a tiny one (AutoencoderTiny)."""
    offline: bool
    """Never ask the network; use what is in the local cache."""


class PromptsConfig(Settings):
    """How the prompt follows the camera."""

    view_dependent: bool
    """Append words of the view."""
    views: Literal["coarse", "fine"]
    """coarse: "front view", "side view", "back view" or "overhead view". fine: eighths of the circle and heights, such
    as "front left view slightly from above" (left and right are the object's own), in place of front_deg, back_deg."""
    perp_neg: bool
    """Perp-Neg (2304.04968): neighbouring views are moved away from. With views=coarse they also blend into each other,
    in place of front_deg and back_deg."""
    front_deg: Annotated[float, Field(ge=0, le=180)]
    """Front view within this azimuth to either side of the front."""
    back_deg: Annotated[float, Field(ge=0, le=180)]
    """Back view beyond this azimuth."""
    overhead_deg: ElevationDeg
    """Overhead view above this elevation."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.perp_neg and not self.view_dependent:
            raise _complete_error(
                "prompts.perp_neg=true: moves away from view words, which prompts.view_dependent=false leaves out; set "
                "prompts.view_dependent=true, or prompts.perp_neg=false"
            )
        if self.front_deg > self.back_deg:
            raise PydanticCustomError("range", "front_deg must not exceed back_deg")
        return self


class EncodingConfig(Settings):
    """Multiresolution hash encoding (Instant-NGP, 2201.05989)."""

    levels: Annotated[int, Field(ge=1, le=32)]
    """Number of grids."""
    features: Literal[1, 2, 4, 8]
    """Features per grid entry."""
    log2_entries: Annotated[int, Field(ge=4, le=24)]
    """Entries per level at most: 2 to this power."""
    base_resolution: Annotated[int, Field(ge=2, le=1024)]
    """Cells per axis of the coarsest grid."""
    growth: Annotated[float, Field(ge=1, le=4)]
    """Factor of resolution from one level to the next."""


class NeRFConfig(Settings):
    """The hash-grid NeRF that is optimised."""

    type: Literal["nerf"]
    """Kind of generator."""
    radius: PositiveFloat
    """Half-width of the cube that holds the object."""
    encoding: EncodingConfig
    """Of positions."""
    hidden_width: Annotated[int, Field(ge=1, le=1024)]
    """Neurons per hidden layer."""
    hidden_layers: Annotated[int, Field(ge=1, le=8)]
    """Hidden layers of each small MLP."""
    density_blob_scale: NonNegativeFloat
    """Height of the initial density blob, before the softplus."""
    density_blob_std: PositiveFloat
    """Radius at which the blob falls to 0, in world units."""
    background: Literal["learned", "color"]
    """A small network on directions, or one plain colour."""
    occupancy_resolution: Annotated[int, Field(ge=2, le=512)]
    """Cells per axis of the occupancy grid."""
    occupancy_interval: PositiveInt
    """Steps between its updates."""
    occupancy_decay: Annotated[float, Field(gt=0, le=1)]
    """Factor on the remembered density at each update."""
    occupancy_warmup: Annotated[int, Field(ge=0)]
    """Steps during which every cell is refreshed, not a random part of them."""
    alpha_threshold: Annotated[float, Field(ge=0, lt=1)]
    """Opacity of one sample below which a cell counts as empty."""
    samples_per_ray: Annotated[int, Field(ge=2, le=4096)]
    """Samples over the longest way through the cube."""
    max_samples: Annotated[int, Field(ge=1024)]
    """Cap on the samples of one rendering; beyond it the step grows."""
    prune_alpha: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Opacity of one sample below which a rendering leaves it out, as it then does samples behind opaque matter: fewer
    samples to differentiate, for an extra evaluation of the density of all. 0 keeps all."""
    normals: Literal["analytic", "finite_difference"]
    """How normals come from the density."""
    finite_difference_eps: PositiveFloat
    """Half-step of the finite differences, in world units."""


class LatentConfig(Settings):
    """Pictures that are optimised as the prior's latent codes: ``train.batch_size`` of them, each on its own."""

    type: Literal["latent"]
    """Kind of generator."""
    initial_std: NonNegativeFloat
    """Standard deviation of the Gaussian noise that they start from; those of images are about 1."""


class ImageConfig(Settings):
    """Pictures that are optimised as pixels: ``train.batch_size`` of them, each on its own."""

    type: Literal["image"]
    """Kind of generator."""
    initial_std: NonNegativeFloat
    """Standard deviation of the Gaussian noise around mid-gray that they start from, in a range of [0, 1]."""


class PluginGeneratorConfig(Settings):
    """A generator from outside the package, see `nfsd3d.generators.plugins`."""

    type: str
    """Its name."""
    options: dict[str, JsonValue]
    """Settings of its own."""
    learning_rate: dict[str, PositiveFloat]
    """AdamW's learning rates by parameter group, in place of ``train.learning_rate``."""


def _generator_tag(values: Any) -> Any:
    kind = values.get("type") if isinstance(values, Mapping) else getattr(values, "type", None)
    return _PLUGIN if isinstance(kind, str) and kind in GENERATORS else kind


_PLUGIN = "a registered generator"
GeneratorConfig = Annotated[
    Annotated[NeRFConfig, Tag("nerf")]
    | Annotated[LatentConfig, Tag("latent")]
    | Annotated[ImageConfig, Tag("image")]
    | Annotated[PluginGeneratorConfig, Tag(_PLUGIN)],
    Discriminator(_generator_tag),
]
RATES = {"nerf": ("encoding", "network", "background"), "latent": ("latent",), "image": ("image",)}
"""The learning rates of each generator."""


class CamerasConfig(Settings):
    """What the training cameras are drawn from; each range is [low, high]. Fields of `nfsd3d.cameras.CameraRanges`."""

    distance: PositiveRange
    """From the origin, in world units."""
    fovy_deg: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=180)], Annotated[float, Field(gt=0, lt=180)]], AfterValidator(_ordered)
    ]
    """Vertical field of view."""
    elevation_deg: ElevationRange
    """Above the horizon."""
    azimuth_deg: Annotated[
        tuple[Annotated[float, Field(ge=-360, le=360)], Annotated[float, Field(ge=-360, le=360)]],
        AfterValidator(_ordered),
    ]
    """From the front (+x) towards +y."""
    overhead_probability: Fraction
    """Probability that the elevation comes from ``overhead_deg`` instead."""
    overhead_deg: ElevationRange
    """Above the horizon, for the views from overhead."""
    target_jitter: NonNegativeFloat
    """Standard deviation of the point looked at, in world units."""
    light_jitter_deg: Annotated[float, Field(ge=0, le=180)]
    """Half-angle of the cone around the camera in which the light stands."""
    light_distance: PositiveRange
    """Of the light from the origin, in world units."""


class LearningRateConfig(Settings):
    """Learning rates of the generator's parameter groups: those that it has (``RATES``)."""

    encoding: PositiveFloat | None = None
    """Of a NeRF's hash tables."""
    network: PositiveFloat | None = None
    """Of a NeRF's density and colour networks."""
    background: PositiveFloat | None = None
    """Of a NeRF's background network."""
    latent: PositiveFloat | None = None
    """Of latent codes."""
    image: PositiveFloat | None = None
    """Of pixels."""

    @model_serializer
    def given(self) -> dict[str, float]:
        """The rates that are set, by name."""
        return {name: rate for name, rate in self if rate is not None}


class ShadingConfig(Settings):
    """Which shading a training step renders with."""

    lambertian: FractionSchedule
    """Probability of shading with a light, over training; else plain albedo. [[0.2, 0.0], [0.2, 0.75]] lets the light
    in after a fifth."""
    textureless: Fraction
    """Probability, among the shaded steps, of a white surface."""
    ambient: Fraction
    """Ambient part of the light; the rest is diffuse."""


class RegularizersConfig(Settings):
    """Weights of the regularisers over training; 0 switches one off."""

    sparsity: WeightSchedule
    """mean sqrt(opacity^2 + .01): empties the scene."""
    opaque: WeightSchedule
    """Binary entropy of the opacity: pushes it to 0 or 1."""
    orient: WeightSchedule
    """sum w relu(n . d)^2: turns normals towards the camera (Ref-NeRF, 2112.03907)."""
    z_variance: WeightSchedule
    """Variance of depth along solid rays: thins surfaces (HiFA, 2305.18766)."""


class DivergedConfig(Settings):
    """When the run is given up as collapsed or filled with smoke; a non-finite gradient always ends it."""

    after: Fraction
    """Not before this fraction of training."""
    window: PositiveInt
    """Steps in a row that must be beyond a limit."""
    opacity_below: Fraction
    """Mean opacity below this: empty."""
    opacity_above: Fraction
    """Mean opacity above this: full."""

    @model_validator(mode="after")
    def _limits_in_order(self) -> Self:
        if self.opacity_below >= self.opacity_above:
            values = {"below": self.opacity_below, "above": self.opacity_above}
            raise PydanticCustomError("range", "opacity_below={below} must lie below opacity_above={above}", values)
        return self


class TrainConfig(Settings):
    """The optimisation."""

    steps: PositiveInt
    """Optimisation steps."""
    batch_size: Annotated[int, Field(ge=1, le=256)]
    """Views per step; with ``generator=latent|image`` the number of pictures."""
    resolution: ImageSizes
    """Height and width of the rendered views, over training; they are resized to the prior's size. With
    ``generator=image`` one number, the pictures' size; a latent's is the prior's."""
    t_min: FractionSchedule
    """Lowest timestep, as a fraction of the model's training timesteps, over training."""
    t_max: FractionSchedule
    """Highest timestep, likewise."""
    learning_rate: LearningRateConfig
    """AdamW's, before ``learning_rate_factor``."""
    learning_rate_factor: WeightSchedule
    """Factor on all learning rates, over training."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    """AdamW's decay rates."""
    eps: PositiveFloat
    """AdamW's eps."""
    weight_decay: NonNegativeFloat
    """AdamW's, on all parameters."""
    gradient_clip: PositiveFloat | None
    """Largest norm of the parameters' gradient; null: none."""
    shading: ShadingConfig
    """How views are lit."""
    random_background: Fraction
    """Probability, for each view, of a random plain background instead of the generator's."""
    regularizers: RegularizersConfig
    """Losses besides the distillation."""
    preview_every: PositiveInt
    """Steps between previews."""
    preview_size: Annotated[int, Field(ge=16, le=1024)]
    """Height and width of each preview view in pixels."""
    log_every: PositiveInt
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: PositiveInt
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt
    """How many checkpoints stay."""
    tensorboard: bool
    """Write TensorBoard events too."""
    diverged: DivergedConfig
    """When to give up."""

    @model_validator(mode="after")
    def _timesteps_in_order(self) -> Self:
        fraction = crossing(self.t_min, self.t_max)
        if fraction is not None:
            values = {"low": self.t_min, "high": self.t_max, "when": f"{fraction:g}"}
            message = "t_min={low} must lie below t_max={high}, and at {when} of training it does not"
            raise PydanticCustomError("range", message, values)
        return self


class ExportConfig(Settings):
    """What is made of the finished generator."""

    mesh: bool
    """Extract a mesh."""
    formats: Annotated[list[Literal["glb", "obj", "ply", "stl"]], Field(min_length=1)]
    """Files to write."""
    resolution: Annotated[int, Field(ge=16, le=1024)]
    """Cells per axis of the isosurface grid, at least; only those near the surface are sampled."""
    threshold: Annotated[Literal["auto"] | float, PlainValidator(_check_mesh_threshold), _as_it_is]
    """Density of the surface; or auto: the density at which views show one, and what they do not see is filled."""
    max_faces: Annotated[int, Field(ge=100)]
    """Simplified to at most so many triangles."""
    texture_size: Annotated[int, AfterValidator(_check_texture_size)] = 1024
    """Texels per side of the texture of GLB and OBJ, 64 to 4096; 0: vertex colours. (Runs may be older than it.)"""
    unwrap_timeout: PositiveFloat = 120.0
    """Seconds that laying out the texture may take; then there are vertex colours instead. (Runs may be older.)"""
    turntable: bool
    """Write turntable.mp4 and turntable.png."""
    turntable_frames: Annotated[int, Field(ge=8, le=2000)]
    """Frames of the video, once around the object."""
    turntable_size: Annotated[int, Field(ge=16, le=2048), AfterValidator(_check_even)]
    """Height and width of each frame's pictures in pixels."""
    report: bool
    """Write report.html."""


class Config(Settings):
    """Everything a run depends on. Build one with `nfsd3d.config.compose.compose` or `from_dict`."""

    prompt: Annotated[str, AfterValidator(_check_prompt)]
    """What to make."""
    negative_prompt: Annotated[str, AfterValidator(_check_prompt_text)]
    """What NFSD takes as the description of out-of-domain images."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Seed of everything random."""
    run_dir: Annotated[str, Field(min_length=1)] | None = None
    """Directory of the run; null: outputs/<config>/<prompt>/<time>."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""
    source_run: str | None = None
    """What to start from, or to edit: the directory of a run with the same generator."""
    source_image: str | None = None
    """What to start from, or to edit: an image file, cut to a square."""
    source_prompt: str | None = None
    """Editing: what the source shows."""
    machine: MachineConfig
    """Device and precision."""
    backend: BackendConfig
    """Kernels."""
    distill: DistillConfig
    """The method."""
    prior: PriorConfig
    """The teacher."""
    prompts: PromptsConfig
    """View words."""
    generator: GeneratorConfig
    """What is optimised."""
    cameras: CamerasConfig
    """Training views."""
    train: TrainConfig
    """The optimisation."""
    export: ExportConfig
    """The results."""

    @property
    def makes_images(self) -> bool:
        """Whether the generator is flat: pictures, not a scene that cameras see."""
        return self.generator.type != "nerf"

    @model_validator(mode="after")
    def _source_is_complete(self) -> Self:
        given = [f"{name}={getattr(self, name)}" for name in ("source_run", "source_image") if getattr(self, name)]
        edits = self.distill.method in METHODS and METHODS.find(self.distill.method).needs_source
        if edits and not given:
            message = "needs something to edit: give source_image=FILE or source_run=RUN_DIR, and source_prompt"
        elif not edits and self.source_prompt is not None:
            message = (
                f"does not read source_prompt={self.source_prompt}: leave it out to start from what is there, or edit "
                "that with --config configs/dds.yaml"
            )
        elif len(given) > 1:
            message = f"edits one source, not both {given[0]} and {given[1]}: leave one out"
        elif edits and not (self.source_prompt or "").strip():
            message = f'needs source_prompt beside {given[0]}: say what the source shows, source_prompt="a red cube"'
        elif self.source_image is not None and not self.makes_images:
            message = f"cannot make a NeRF of {given[0]}: set generator=latent or generator=image, or give source_run"
        elif self.source_image is not None and isinstance(self.generator, PluginGeneratorConfig):
            message = f"cannot start generator={self.generator.type} from {given[0]}: give source_run"
        else:
            return self
        raise _complete_error("distill={method}: {text}", method=self.distill.method, text=message)

    @model_validator(mode="after")
    def _learning_rates_are_the_generators(self) -> Self:
        rates, kind = self.train.learning_rate.given(), self.generator.type
        if kind in RATES and rates.keys() != set(RATES[kind]):
            raise _complete_error(
                "train.learning_rate={rates}: generator={kind} has exactly the rates {names}; set these",
                rates=json.dumps(rates),
                kind=kind,
                names=", ".join(RATES[kind]),
            )
        return self

    @model_validator(mode="after")
    def _pictures_are_flat(self) -> Self:
        if not self.makes_images:
            return self
        train, export = self.train, self.export
        regularizers = {f"train.regularizers.{name}": schedule for name, schedule in train.regularizers}
        shading = {"train.shading.lambertian": train.shading.lambertian}
        solid = {**regularizers, **shading, "train.random_background": train.random_background}
        wrong = [(key, schedule) for key, schedule in solid.items() if highest(schedule) > 0]
        wrong += [(f"export.{name}", True) for name in ("mesh", "turntable") if getattr(export, name)]
        if wrong:
            key, value = wrong[0]
            raise _complete_error(
                "{key}={value}: generator={kind} makes pictures, which have neither depth nor light; set {key}={off}",
                key=key,
                value=json.dumps(value),
                kind=self.generator.type,
                off="false" if value is True else "0",
            )
        if isinstance(train.resolution, list):
            raise _complete_error(
                "train.resolution={value}: pictures keep their size; give one number", value=train.resolution
            )
        return self

    @model_validator(mode="after")
    def _orientation_trains(self) -> Self:
        orient = self.train.regularizers.orient
        if isinstance(self.generator, NeRFConfig) and highest(orient) > 0 and self.generator.normals == "analytic":
            raise _complete_error(
                "train.regularizers.orient={orient}: has no effect with generator.normals=analytic, because analytic "
                "normals carry no gradient; set generator.normals=finite_difference, or train.regularizers.orient=0",
                orient=orient,
            )
        return self

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that ``values`` (nested mappings, lists and plain values) describe.

        Raises `InputError`, on one line, naming each wrong setting with its value and what it must be.
        """
        try:
            # JSON, because pydantic's strict mode takes lists for tuples there and still refuses "1" for 1.
            return cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            raise InputError(describe_errors(error, known_keys())) from error

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries, lists and plain values; `from_dict` is the inverse."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Text of ``config.yaml`` of a run directory: fully resolved, without ``run_dir`` and ``dry_run``.

        Hydra and OmegaConf read it back to the same values: a literal ``${`` is escaped.
        """
        values = {key: value for key, value in self.to_dict().items() if key not in ("run_dir", "dry_run")}
        return yaml.dump(
            escape_interpolations(values), Dumper=_ConfigDumper, sort_keys=False, allow_unicode=True, width=110
        )

    def replace(self, **changes: Any) -> Self:
        """The same configuration with some top-level settings changed, validated again."""
        return self.from_dict({**self.to_dict(), **changes})


class _ConfigDumper(yaml.SafeDumper):
    """Block style, with lists on one line (knots and ranges read like the tables they are)."""


def _represent_text(dumper: _ConfigDumper, text: str) -> yaml.Node:
    # OmegaConf reads more texts as numbers than YAML does (1e3): quote all that begin like one. Control characters
    # survive in double quotes only.
    style = '"' if text[:1] in tuple("+-.0123456789") or not text.isprintable() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_list(dumper: _ConfigDumper, values: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


_ConfigDumper.add_representer(str, _represent_text)
_ConfigDumper.add_representer(list, _represent_list)


def escape_interpolations(value: Any) -> Any:
    r"""``value`` with ``${`` in its strings, at any depth, written so that OmegaConf takes it literally (``\${``)."""
    if isinstance(value, str):
        return _escape_interpolation(value)
    if isinstance(value, Mapping):
        return {key: escape_interpolations(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escape_interpolations(item) for item in value]
    return value


def _escape_interpolation(text: str) -> str:
    chunks = text.split("${")
    if len(chunks) == 1:
        return text
    # Backslashes count as escapes only right before ${: there each is doubled, and one more escapes the $.
    escaped = [piece + "\\" * (len(piece) - len(piece.rstrip("\\"))) for piece in chunks[:-1]]
    return "\\${".join([*escaped, chunks[-1]])


def known_keys() -> list[str]:
    """Every setting as a dotted key, branches included: ``train``, ``train.steps``, ..."""

    def walk(model: type[BaseModel], prefix: str) -> list[str]:
        keys = []
        for name, field in model.model_fields.items():
            keys.append(prefix + name)
            for kind in (field.annotation, *get_args(field.annotation)):  # a model, or one of several
                kind = getattr(kind, "__origin__", kind)  # without its tag
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    keys += walk(kind, f"{prefix}{name}.")
        return keys

    return list(dict.fromkeys(walk(Config, "")))
