"""Settings of the mesh, turntable and report that a finished run writes."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainValidator, PositiveFloat
from pydantic_core import PydanticCustomError

from nfsd3d.errors import InputError
from nfsd3d.settings.types import UNCHANGED, Even, described_type, is_number

GLTFPACK = "gltfpack"
"""The program that compresses GLB files for the web."""

SIZES_MM = (0.01, 1e6)
"""Smallest and largest longest side of a mesh, in millimetres."""

TEXTURE_SIZES = (64, 4096)
"""Smallest and largest side of a texture, in texels."""


def _check_threshold(value: object) -> object:
    if value == "auto" or (is_number(value) and value > 0):  # type: ignore[operator]
        return value
    raise PydanticCustomError("threshold", "must be auto or a density above 0")


def _check_texture_size(value: int) -> int:
    low, high = TEXTURE_SIZES
    if value and not low <= value <= high:
        message = "must be 0 (vertex colours, no texture) or from {low} to {high}"
        raise PydanticCustomError("texture_size", message, {"low": low, "high": high})
    return value


def _check_decreasing(values: list[int]) -> list[int]:
    if any(after >= before for before, after in pairwise(values)):
        raise PydanticCustomError("lods", "must become smaller, such as [10000, 2000]")
    return values


DensityThreshold = Annotated[
    Literal["auto"] | float, PlainValidator(_check_threshold), UNCHANGED, described_type("auto or number > 0")
]
TextureSize = Annotated[
    int, AfterValidator(_check_texture_size), described_type("0, or whole number in [{}, {}]".format(*TEXTURE_SIZES))
]


PACKAGES: dict[str, tuple[str, str]] = {"3mf": ("lib3mf", "assets"), "usdz": ("pxr", "assets")}
"""The optional package that a mesh format needs, and the extra that installs it."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a mesh stands in its files."""

    size_mm: Annotated[float, Field(ge=SIZES_MM[0], le=SIZES_MM[1])] | None = None
    """Longest side in millimetres; null: the world's size, a metre for a world unit."""
    units: Literal["auto", "m", "cm", "mm", "in"] = "auto"
    """Unit of the numbers in OBJ, PLY, STL, 3MF and USDZ (GLB: always m); auto: m, or mm if size_mm is set."""
    up: Literal["auto", "y", "z"] = "auto"
    """Upward axis of OBJ, PLY, STL and USDZ (GLB: always y, 3MF: z); auto: y in OBJ and USDZ, z in PLY and STL."""
    origin: Literal["world", "center", "floor"] = "world"
    """Where the origin is: the world's, the middle of the bounding box, or the middle of its lower face."""
    compress: Literal["none", "quantized", "web"] = "none"
    """Compression of GLB: quantized opens in Blender, trimesh and three.js; web, by gltfpack, in three.js alone."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Placement):
    """What is written of a finished generator."""

    mesh: bool
    """Extract a mesh."""
    formats: Annotated[list[Literal["glb", "obj", "ply", "stl", "3mf", "usdz"]], Field(min_length=1)]
    """Mesh files to write; glb, obj and usdz carry the texture, ply and 3mf vertex colours, stl no colours."""
    resolution: Annotated[int, Field(ge=16, le=1024)]
    """Smallest number of cells per axis of the isosurface grid; finer resolves more detail in more time."""
    threshold: DensityThreshold
    """Density at the surface; auto: the density at which the rendered views show one, with hidden cavities filled."""
    max_faces: Annotated[int, Field(ge=100)]
    """Largest number of triangles after simplification."""
    # The next four have defaults because older runs lack them.
    lods: Annotated[list[Annotated[int, Field(ge=50)]], AfterValidator(_check_decreasing)] = field(default_factory=list)
    """Levels of detail: triangles of further, coarser meshes, as model-lod1, model-lod2, ... beside the mesh."""
    texture_size: TextureSize = 1024
    """Texels per side of the texture of GLB, OBJ and USDZ; 0: vertex colours."""
    normal_map: bool = False
    """Also write the directions of the surface before simplification as a texture, in GLB, OBJ and USDZ."""
    unwrap_timeout: PositiveFloat = 120.0
    """Seconds allowed for UV unwrapping; a mesh that takes longer gets vertex colours."""
    turntable: bool
    """Write turntable.mp4 and turntable.png."""
    turntable_frames: Annotated[int, Field(ge=8, le=2000)]
    """Frames of the turntable video, once around the object."""
    turntable_size: Annotated[int, Field(ge=16, le=2048), Even]
    """Height and width in pixels of each view in the turntable video."""
    report: bool
    """Write report.html."""

    def __post_init__(self) -> None:
        """Checks levels of detail and normal map against the mesh.

        Raises:
            InputError: the first level has as many triangles as the mesh may have, or more; a normal map has no UV map.
        """
        if self.lods and self.lods[0] >= self.max_faces:
            raise InputError(f"export.lods={self.lods}: must lie below export.max_faces={self.max_faces}")
        if self.normal_map and not self.texture_size:
            raise InputError(
                "--normal-map, export.normal_map=true: needs a texture; raise --texture-size, export.texture_size"
            )


def check_packages(formats: Iterable[str], compress: str = "none") -> None:
    """Checks that what the mesh formats and the compression of GLB need is installed.

    Raises:
        InputError: a format or the compression needs a package or program that is not installed.
    """
    for name in formats:
        package, extra = PACKAGES.get(name, (None, ""))
        if package is not None and find_spec(package) is None:
            raise InputError(
                f"--formats, export.formats: {name} needs an optional package; install it: pip install "
                f"'nfsd3d[{extra}]' (in a checkout: pip install -e '.[{extra}]')"
            )
    if compress == "web" and shutil.which(GLTFPACK) is None:
        raise InputError(
            f"--compress, export.compress=web: there is no {GLTFPACK}; install it: npm install -g {GLTFPACK}"
        )
