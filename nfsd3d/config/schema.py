"""The configuration of a run: one typed, documented, immutable tree.

Each component's settings are a frozen dataclass in the component's package; those of the machine and of training are
here. Values come from the YAML files in ``configs/`` (see `nfsd3d.config.compose`). Only optional settings and settings
newer than some runs have a default here. Validation is strict: no string becomes a number, and an unknown key is an
error. Angles are degrees (``_deg``), lengths world units (the object lies in the cube of half-width
``generator.radius``), and fractions of training run from 0 to 1.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    Tag,
    TypeAdapter,
    ValidationError,
    model_serializer,
)
from pydantic_core import PydanticCustomError

from nfsd3d.config.errors import describe_errors
from nfsd3d.config.yaml_text import to_yaml
from nfsd3d.distill.methods import TABLE as METHODS
from nfsd3d.distill.settings import DistillSettings
from nfsd3d.errors import InputError
from nfsd3d.generators.mesh.settings import MeshSettings
from nfsd3d.generators.nerf.settings import NeRFSettings
from nfsd3d.generators.plugins import TABLE as GENERATORS
from nfsd3d.generators.settings import ImageSettings, LatentSettings, PluginGeneratorSettings
from nfsd3d.prior.settings import PriorSettings
from nfsd3d.settings.cameras import CameraRanges
from nfsd3d.settings.export import ExportSettings
from nfsd3d.settings.prompts import PromptSettings
from nfsd3d.settings.schedules import crossing, highest
from nfsd3d.settings.types import (
    UNCHANGED,
    Fraction,
    FractionSchedule,
    ImageSizes,
    Name,
    Names,
    WeightSchedule,
    Window,
    described_type,
)

MAX_PROMPT_LENGTH = 1000
_OF_A_PROCESS = ("run_dir", "dry_run", "viewer")
_SOURCES = ("source_run", "source_mesh", "source_image")
RATES = {
    "nerf": ("encoding", "network", "background"),
    "mesh": ("geometry", "texture", "background"),
    "latent": ("latent",),
    "image": ("image",),
}
"""The learning rates of each generator."""


def _check_device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise PydanticCustomError("range", "must be cpu, cuda or cuda:N")
    return name


def _check_viewer(value: object) -> object:
    """True, false, or HOST:PORT."""
    if isinstance(value, bool):
        return value
    found = re.fullmatch(r"[^\s:]+:(\d{1,5})|\[[\da-fA-F:]+\]:(\d{1,5})", value) if isinstance(value, str) else None
    if found is None or not 0 < int(found[1] or found[2]) < 2**16:
        raise PydanticCustomError("range", "must be true, false or HOST:PORT, such as 127.0.0.1:8080")
    return value


def _check_prompt_text(text: str) -> str:
    if len(text) > MAX_PROMPT_LENGTH:
        message = "has {length} characters, the limit is {limit}: shorten it"
        raise PydanticCustomError("prompt", message, {"length": len(text), "limit": MAX_PROMPT_LENGTH})
    return text


def _check_prompt(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("prompt", 'is empty: say what to make, for example prompt="a red mushroom"')
    return _check_prompt_text(text)


def _generator_tag(values: object) -> object:
    kind = values.get("type") if isinstance(values, Mapping) else getattr(values, "type", None)
    return _PLUGIN if isinstance(kind, str) and kind in GENERATORS else kind


_PLUGIN = "a registered generator"
GeneratorSettings = Annotated[
    Annotated[NeRFSettings, Tag("nerf")]
    | Annotated[MeshSettings, Tag("mesh")]
    | Annotated[LatentSettings, Tag("latent")]
    | Annotated[ImageSettings, Tag("image")]
    | Annotated[PluginGeneratorSettings, Tag(_PLUGIN)],
    Discriminator(_generator_tag),
]
ViewerSetting = Annotated[
    bool | str, PlainValidator(_check_viewer), UNCHANGED, described_type("true, false or HOST:PORT")
]
Device = Annotated[str, AfterValidator(_check_device), described_type("cpu, cuda or cuda:N")]


@dataclass(frozen=True, kw_only=True)
class DeviceSettings:
    """The device and the number format of the prior's networks."""

    name: Literal["cpu", "cuda"]
    """Preset that the group's values came from (``machine=cpu|cuda``)."""
    device: Device
    """Torch device of all networks."""
    precision: Literal["float32", "bfloat16", "float16"]
    """Number format of the prior's networks; other than float32, the field's Triton MLP uses TF32."""


@dataclass(frozen=True)
class ChunkSettings:
    """How a training step is split to fit into memory."""

    rays_per_chunk: Annotated[int, Field(ge=256)] | None = None
    """Rays rendered together, and again in the backward pass: fewer take less memory, more time. null: all, once."""
    unet_batch_size: PositiveInt | None = None
    """Latents or images per call of the prior's networks: fewer take less memory, more time. null: a step's."""
    checkpoint_encoder: bool = False
    """Recompute the encoder's activations in the backward pass: 1/3 more encoder time saves most of its memory."""


@dataclass(frozen=True, kw_only=True)
class MachineSettings(ChunkSettings, DeviceSettings):
    """Device, precision and memory."""

    compile: Literal["auto"] | bool = "auto"
    """torch.compile for the prior's networks; auto: for Stable Diffusion on CUDA, and a trace of shapes on a CPU."""
    memory_gb: PositiveFloat | None = None
    """Predicted memory limit of a step in GiB, on CUDA; chunk sizes are reduced to fit. null: the free memory."""


@dataclass(frozen=True, kw_only=True)
class BackendSettings:
    """Implementations of the field (hash encoding and MLP), of ray sampling and of rasterisation."""

    field: Literal["torch", "numba", "triton", "tcnn"]
    """Hash encoding: torch (reference), numba (CPU), triton (CUDA, fuses the MLP), tcnn (CUDA, tiny-cuda-nn)."""
    sampler: Literal["torch", "numba", "triton", "nerfacc"]
    """Ray sampling: torch (reference), numba (CPU), triton (CUDA, composites too), nerfacc (CUDA)."""
    rasterizer: Literal["torch", "numba", "triton"] = "torch"
    """Rasterisation of a mesh: torch (reference), numba (CPU), triton (CUDA)."""


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
    ambient: Fraction
    """Share of ambient light in a lit step; the rest is diffuse."""


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


@dataclass(frozen=True, kw_only=True)
class RefineSettings:
    """The field that a mesh's run trains first, where it has no other source."""

    experiment: str
    """Experiment of the field, a name or a YAML file; the run's prompts, seed, method, teacher and machine are its."""
    field_steps: PositiveInt | None = None
    """Steps of the field; null: the experiment's. ``train.steps`` are the mesh's."""
    overrides: list[str] = field(default_factory=list)
    """Settings of the field, each as on the command line: ``[train.batch_size=2]``."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run depends on.

    Build one with `nfsd3d.config.compose.compose` or `from_dict`.
    """

    # The nested dataclasses have no configuration of their own, and so inherit this one.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: Annotated[str, AfterValidator(_check_prompt)]
    """Description of the scene or image, or of the result of an edit."""
    negative_prompt: Annotated[str, AfterValidator(_check_prompt_text)]
    """NFSD: description of out-of-domain images, whose prediction delta_D subtracts."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Seed of all random numbers; repeats a run on the same machine."""
    run_dir: Name | None = None
    """Directory of the run; null: ``outputs/<config>/<prompt>/<time>``."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""
    viewer: ViewerSetting = False
    """Show the scene in the browser while it trains; HOST:PORT instead of true: where to listen."""
    logger: Names | None = None
    """Loggers besides metrics.jsonl: wandb, mlflow, or a list of them."""
    source_run: str | None = None
    """Run directory to start from, or to edit, with the same generator; a mesh starts from a NeRF, too."""
    source_mesh: str | None = None
    """Mesh file to start from (generator=mesh): GLB, OBJ, PLY or STL."""
    source_image: str | None = None
    """Image file to start from, or to edit; cropped to a square."""
    refine: RefineSettings | None = None
    """The field that a mesh's run begins with; not used where a source is given."""
    source_prompt: str | None = None
    """Editing: description of the source."""
    machine: MachineSettings
    """Device, precision and memory."""
    backend: BackendSettings
    """Implementations of the field and of ray sampling."""
    distill: DistillSettings
    """Distillation method."""
    prior: PriorSettings
    """Pretrained latent diffusion model."""
    prompts: PromptSettings
    """View-dependent prompts."""
    generator: GeneratorSettings
    """What is optimised: a NeRF, a mesh, latents, images or a plug-in's parameters."""
    cameras: CameraRanges
    """Training cameras."""
    train: TrainSettings
    """Optimisation."""
    export: ExportSettings
    """Mesh, turntable and report of the finished run."""

    def __post_init__(self) -> None:
        self._check_source()
        self._check_mesh()
        self._check_learning_rates()
        if self.makes_images:
            self._check_images()
        self._check_orientation()

    @property
    def makes_images(self) -> bool:
        """Whether the generator is a batch of images (latents or pixels) instead of a scene."""
        return not isinstance(self.generator, NeRFSettings | MeshSettings)

    def _check_source(self) -> None:
        given = [f"{name}={getattr(self, name)}" for name in _SOURCES if getattr(self, name)]
        edits = self.distill.method in METHODS and METHODS.find(self.distill.method).needs_source
        if edits and not given:
            message = "needs something to edit: give source_image=FILE or source_run=RUN_DIR, and source_prompt"
        elif not edits and self.source_prompt is not None:
            message = (
                f"does not read source_prompt={self.source_prompt}: leave it out to start from what is there, or edit "
                "that with --config configs/dds.yaml"
            )
        elif len(given) > 1:
            message = f"starts from one source, not both {given[0]} and {given[1]}: leave one out"
        elif edits and not (self.source_prompt or "").strip():
            message = f'needs source_prompt beside {given[0]}: say what the source shows, source_prompt="a red cube"'
        elif self.source_image is not None and not self.makes_images:
            message = f"cannot make a NeRF of {given[0]}: set generator=latent or generator=image, or give source_run"
        elif self.source_image is not None and isinstance(self.generator, PluginGeneratorSettings):
            message = f"cannot start generator={self.generator.type} from {given[0]}: give source_run"
        else:
            return
        raise InputError(f"distill={self.distill.method}: {message}")

    def _check_mesh(self) -> None:
        """What is a mesh needs one to begin with."""
        mesh = isinstance(self.generator, MeshSettings)
        if mesh and self.source_run is None and self.source_mesh is None and self.refine is None:
            raise InputError("generator=mesh: needs a mesh to start from: give source_run=RUN_DIR or source_mesh=FILE")
        if not mesh and self.source_mesh is not None:
            raise InputError(f"source_mesh={self.source_mesh}: is for generator=mesh; set generator=mesh")

    def _check_learning_rates(self) -> None:
        rates, kind = self.train.learning_rate.given(), self.generator.type
        if kind in RATES and rates.keys() != set(RATES[kind]):
            raise InputError(
                f"train.learning_rate={json.dumps(rates)}: generator={kind} has exactly the rates "
                f"{', '.join(RATES[kind])}; set these"
            )

    def _check_images(self) -> None:
        train = self.train
        of_a_scene = {f"train.regularizers.{name}": schedule for name, schedule in vars(train.regularizers).items()}
        of_a_scene["train.shading.lambertian"] = train.shading.lambertian
        of_a_scene["train.random_background"] = train.random_background
        wrong: list[tuple[str, object]] = [(key, value) for key, value in of_a_scene.items() if highest(value) > 0]
        wrong += [(f"export.{name}", True) for name in ("mesh", "turntable") if getattr(self.export, name)]
        if wrong:
            key, value = wrong[0]
            raise InputError(
                f"{key}={json.dumps(value)}: generator={self.generator.type} makes pictures, which have neither depth "
                f"nor light; set {key}={'false' if value is True else '0'}"
            )
        if isinstance(train.resolution, list):
            raise InputError(f"train.resolution={train.resolution}: pictures keep their size; give one number")

    def _check_orientation(self) -> None:
        orient = self.train.regularizers.orient
        if isinstance(self.generator, NeRFSettings) and highest(orient) > 0 and self.generator.normals == "analytic":
            raise InputError(
                f"train.regularizers.orient={orient}: has no effect with generator.normals=analytic, because analytic "
                "normals carry no gradient; set generator.normals=finite_difference, or train.regularizers.orient=0"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "Config":
        """The configuration that ``values`` (nested mappings, lists and plain values) describe.

        Raises:
            InputError: on one line, each wrong setting with its value and what it must be.
        """
        try:
            # JSON, because pydantic's strict mode takes lists for tuples there and still refuses "1" for 1.
            return _adapter().validate_json(json.dumps(values))
        except ValidationError as error:
            raise InputError(describe_errors(error, known_keys())) from error

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries, lists and plain values; `from_dict` is the inverse."""
        values: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return values

    def to_yaml(self) -> str:
        """Text of ``config.yaml`` of a run directory: fully resolved, without what is about one process only."""
        return to_yaml({key: value for key, value in self.to_dict().items() if key not in _OF_A_PROCESS})

    def replace(self, **changes: object) -> "Config":
        """The same configuration with some top-level settings changed, validated again."""
        return self.from_dict({**self.to_dict(), **changes})


@cache
def _adapter() -> TypeAdapter[Config]:
    return TypeAdapter(Config)


def groups_in(annotation: object) -> list[type]:
    """The settings dataclasses that a field's annotation names: none, one, or several kinds of one group."""
    if isinstance(annotation, type) and is_dataclass(annotation):
        return [annotation]
    arguments = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return [kind for argument in arguments for kind in groups_in(argument)]


@cache
def known_keys() -> list[str]:
    """Every setting as a dotted key, groups included: ``train``, ``train.steps``, ..."""

    def walk(kind: type, prefix: str) -> list[str]:
        keys = []
        for setting in fields(kind):
            keys.append(prefix + setting.name)
            for group in groups_in(setting.type):
                keys += walk(group, f"{prefix}{setting.name}.")
        return keys

    return list(dict.fromkeys(walk(Config, "")))


def values_of(key: str) -> list[str]:
    """The words that a setting may have, such as ``true``, ``false`` or a choice; [] for numbers, texts and groups."""
    return list(dict.fromkeys(word for annotation in _annotations_of(key) for word in _words(annotation)))


def takes_list(key: str) -> bool:
    """Whether a setting may be a list of values, such as ``export.formats``; a schedule is a list of knots."""
    schemas = [TypeAdapter(kind).json_schema() for kind in _annotations_of(key) if not groups_in(kind)]
    choices = [choice for schema in schemas for choice in schema.get("anyOf", [schema])]
    return any("items" in choice or "list of texts" in choice.get("description", "") for choice in choices)


def _annotations_of(key: str) -> list[Any]:
    """The annotations of a setting, in every kind of its group."""
    kinds: list[type] = [Config]
    *path, name = key.split(".")
    for part in path:
        kinds = [kind for outer in kinds for kind in groups_in(_annotations(outer).get(part))]
    return [_annotations(kind)[name] for kind in kinds if name in _annotations(kind)]


def _annotations(kind: type) -> dict[str, Any]:
    return {setting.name: setting.type for setting in fields(kind)}


def _words(annotation: Any) -> list[str]:
    if groups_in(annotation):
        return []
    schema = TypeAdapter(annotation).json_schema()
    choices = schema.get("anyOf", [schema])
    choices = [choice.get("items", choice) for choice in choices]
    words = ["true", "false"] if any(choice.get("type") == "boolean" for choice in choices) else []
    return words + [str(word) for choice in choices for word in (*choice.get("enum", ()), *_only(choice))]


def _only(schema: Mapping[str, Any]) -> list[Any]:
    return [schema["const"]] if "const" in schema else []
