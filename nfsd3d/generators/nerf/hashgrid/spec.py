"""Sizes of a multiresolution hash grid (Instant-NGP, arXiv 2201.05989)."""

from dataclasses import dataclass

from nfsd3d.errors import InputError


@dataclass(frozen=True)
class HashGridSpec:
    """Sizes of a hash grid: level l has floor(``base_resolution`` * ``growth``^l) cells along each axis.

    Every grid vertex has ``features`` numbers. A level whose vertices fit into 2^``log2_entries`` entries is stored
    densely. The vertices of a finer level share that many entries through a spatial hash.
    """

    levels: int = 8
    features: int = 2
    log2_entries: int = 15
    base_resolution: int = 8
    growth: float = 1.5

    def __post_init__(self) -> None:
        """Raises InputError for sizes that define no grid."""
        for name in ("levels", "features", "log2_entries", "base_resolution"):
            if getattr(self, name) < 1:
                raise InputError(f"generator.encoding.{name}={getattr(self, name)}: must be at least 1")
        if self.log2_entries > 28:
            raise InputError(f"generator.encoding.log2_entries={self.log2_entries}: must be at most 28")
        if self.growth < 1:
            raise InputError(
                f"generator.encoding.growth={self.growth}: must be at least 1, finer levels follow coarser ones"
            )
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
