"""Sizes of a multiresolution hash grid (Instant-NGP, arXiv 2201.05989), which are settings."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from nfsd3d.errors import InputError


@dataclass(frozen=True, kw_only=True)
class HashGridSpec:
    """Multiresolution hash encoding (Instant-NGP, 2201.05989).

    Level l has floor(``base_resolution`` * ``growth``^l) cells along each axis, and every vertex has ``features``
    numbers. A level whose vertices fit into 2^``log2_entries`` entries is stored densely. The vertices of a finer
    level share that many entries through a spatial hash.
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
    precision: Literal["float32", "float16"] = "float32"
    """Number format in which tables are read; float16: from a copy, with backend.field=triton, sums in float32."""

    def __post_init__(self) -> None:
        """Raises InputError for sizes that define no grid."""
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


def check_precision(spec: HashGridSpec, backend: str) -> None:
    """Raises InputError for a precision in which the ``backend`` does not read tables."""
    if spec.precision != "float32" and backend != "triton":
        raise InputError(
            f"generator.encoding.precision={spec.precision}: backend.field={backend} reads float32 only; choose "
            "float32, or backend.field=triton on a GPU"
        )
