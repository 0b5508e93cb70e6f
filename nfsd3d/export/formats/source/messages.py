"""Errors and notes about a source mesh file: their wording, and the limit on its triangles."""

from pathlib import Path

from nfsd3d.errors import InputError

MAX_TRIANGLES = 2_000_000

NO_UV = "has a texture without UV positions: it is ignored"
"""Note of a texture that is not read."""


def source_error(path: Path, message: str) -> InputError:
    """The error ``message`` about the file ``path``, on one line that names the setting."""
    return InputError(" ".join(f"source_mesh={path}: {message}".split()))


def check_triangle_count(path: Path, triangles: int, least: int = 0) -> None:
    """Checks the number of triangles.

    Raises:
        InputError: it is above :data:`MAX_TRIANGLES`, or below ``least``.
    """
    if triangles < least:
        raise source_error(path, "has no triangles (a point cloud, or an empty scene); export a mesh with faces")
    if triangles > MAX_TRIANGLES:
        limit = f"the limit is {MAX_TRIANGLES:,}; simplify it to under 500,000, in Blender with Decimate"
        raise source_error(path, f"has {triangles:,} triangles, and {limit}")


def counted(count: int, one: str) -> str:
    """``count`` and the noun ``one`` in singular or plural: "1 vertex", "2,000 vertices"."""
    return f"{count:,} {one}" if count == 1 else f"{count:,} {'vertices' if one == 'vertex' else one + 's'}"
