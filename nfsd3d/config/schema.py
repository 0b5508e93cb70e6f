"""The configuration of a run: one typed, documented, immutable tree.

Each component's settings are a frozen dataclass in the component's package; those of no component are in
`nfsd3d.settings`. Values come from the YAML files in ``configs/`` (see `nfsd3d.config.compose`). Only optional settings
and settings newer than some runs have a default. Validation is strict: no string becomes a number, and an unknown key
is an error. Angles are degrees (``_deg``), lengths world units (the object lies in the cube of half-width
``generator.radius``), and fractions of training run from 0 to 1.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    PositiveInt,
    Tag,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from nfsd3d.config.errors import describe_errors
from nfsd3d.config.keys import keys_of, may_be_list, words_of
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
from nfsd3d.settings.machine import BackendSettings, MachineSettings
from nfsd3d.settings.prompts import PromptSettings
from nfsd3d.settings.schedules import highest
from nfsd3d.settings.train import TrainSettings
from nfsd3d.settings.types import (
    UNCHANGED,
    Name,
    Names,
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


@dataclass(frozen=True, kw_only=True)
class RefineSettings:
    """The field that a mesh's run trains first, where it has no other source."""

    experiment: str
    """Experiment of the field, a name or a YAML file; the run's prompts, seed, method, teacher and machine are its."""
    field_steps: PositiveInt | None = None
    """Steps of the field; null: the experiment's. ``train.steps`` are the mesh's."""
    overrides: list[str] = field(default_factory=list)
    """Settings of the field, each as on the command line: ``["train.batch_size=2"]``."""


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
    """NFSD: description of out-of-domain images, whose prediction delta_D subtracts, unless distill.threshold is 1."""
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
            sources = "source_run=RUN_DIR, source_mesh=FILE or source_image=FILE"
            message = f"needs something to edit: give {sources}, and source_prompt"
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
        if mesh and self.export.normal_map:
            raise InputError("export.normal_map=true: generator=mesh has no finer surface; set export.normal_map=false")
        for name in ("orient", "z_variance"):
            weight = getattr(self.train.regularizers, name)
            if mesh and highest(weight) > 0:
                key = f"train.regularizers.{name}"
                raise InputError(f"{key}={json.dumps(weight)}: a mesh has one surface point a pixel; set {key}=0")

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


def known_keys() -> list[str]:
    """Every setting as a dotted key, groups included: ``train``, ``train.steps``, ..."""
    return keys_of(Config)


def values_of(key: str) -> list[str]:
    """The words that a setting may have, such as ``true``, ``false`` or a choice; [] for numbers, texts and groups."""
    return words_of(Config, key)


def takes_list(key: str) -> bool:
    """Whether a setting may be a list of values, such as ``export.formats``; a schedule is a list of knots."""
    return may_be_list(Config, key)
