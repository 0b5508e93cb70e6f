"""Settings of the hash-grid NeRF."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from nfsd3d.errors import InputError


@dataclass(frozen=True, kw_only=True)
class HashGridSpec:
    """Multiresolution hash encoding (Instant-NGP, 2201.05989).

    Level l has floor(``base_resolution`` * ``growth``^l) cells along each axis, and every vertex has ``features``
    numbers. A level whose vertices fit into 2^``log2_entries`` entries is stored densely. The vertices of finer levels
    share that many entries through a hash.
    """

    levels: Annotated[int, Field(ge=1, le=32)]
    """Number of grids; the finest has ``base_resolution * growth^(levels - 1)`` cells per axis."""
    features: Literal[1, 2, 4, 8]
    """Features per grid vertex; more hold finer detail, at proportional memory and time."""
    log2_entries: Annotated[int, Field(ge=4, le=24)]
    """Base-2 logarithm of the table entries per level; more means fewer hash collisions and more memory."""
    base_resolution: Annotated[int, Field(ge=2, le=1024)]
    """Cells per axis of the coarsest grid."""
    growth: Annotated[float, Field(ge=1, le=4)]
    """Factor between the resolutions of consecutive levels."""

    def __post_init__(self) -> None:
        """Raises InputError for sizes that make no grid."""
        for name in ("levels", "features", "log2_entries", "base_resolution", "growth"):
            if getattr(self, name) < 1:
                raise InputError(f"generator.encoding.{name}={getattr(self, name)}: must be at least 1")
        if self.resolutions[-1] > 2**20:
            raise InputError(
                f"generator.encoding: the finest level would have {self.resolutions[-1]} cells per axis; "
                "lower generator.encoding.growth or levels"
            )

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Cells along each axis, for each level."""
        return tuple(int(self.base_resolution * self.growth**level) for level in range(self.levels))

    @property
    def width(self) -> int:
        """Length of an encoded position."""
        return self.levels * self.features


@dataclass(frozen=True, kw_only=True)
class NeRFSettings:
    """Sizes and constants of a NeRF in the cube [-radius, radius]^3."""

    type: Literal["nerf"] = "nerf"
    """Kind of generator."""
    radius: PositiveFloat
    """Half-width of the cube that holds the object, in world units."""
    encoding: HashGridSpec
    """Hash encoding of positions."""
    hidden_width: Annotated[int, Field(ge=1, le=1024)]
    """Neurons per hidden layer of the field's MLP."""
    hidden_layers: Annotated[int, Field(ge=1, le=8)]
    """Hidden layers of the field's MLP."""
    density_blob_scale: NonNegativeFloat
    """Height of the initial density blob at the origin, before the softplus; 0: starts from an empty scene."""
    density_blob_std: PositiveFloat
    """Radius in world units at which the initial blob falls to 0; larger starts from a bigger object."""
    background: Literal["learned", "color"]
    """Background behind the object. learned: a small network of the direction. color: plain white."""
    occupancy_resolution: Annotated[int, Field(ge=2, le=512)]
    """Cells per axis of the occupancy grid, in which rays skip empty space."""
    occupancy_interval: PositiveInt
    """Steps between updates of the occupancy grid."""
    occupancy_decay: Annotated[float, Field(gt=0, le=1)]
    """Factor on the stored density of each cell at an update; smaller forgets removed density sooner."""
    occupancy_warmup: Annotated[int, Field(ge=0)]
    """Steps in which an update evaluates all cells; later updates evaluate a random part."""
    alpha_threshold: Annotated[float, Field(ge=0, lt=1)]
    """Opacity of one sample below which a grid cell counts as empty; more is faster but drops faint density."""
    samples_per_ray: Annotated[int, Field(ge=2, le=4096)]
    """Samples along the cube's diagonal, which sets the step length; more is finer, at proportional time and memory."""
    max_samples: Annotated[int, Field(ge=1024)]
    """Largest number of samples in one rendering (memory); a fuller scene is rendered with longer steps."""
    prune_alpha: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Opacity below which a sample is dropped, as are occluded ones, for one extra density evaluation; 0: keep all."""
    normals: Literal["analytic", "finite_difference"]
    """Normals from the density: analytic (exact, without gradient) or finite_difference (differentiable)."""
    finite_difference_eps: PositiveFloat
    """Half-step of finite-difference normals in world units; larger is smoother."""
