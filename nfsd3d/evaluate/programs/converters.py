"""Programs without a picture of their own: what they understood of a file is what they write, or say, of it."""

import re
import tempfile
from pathlib import Path

import trimesh

from nfsd3d.errors import InputError
from nfsd3d.evaluate.programs.run import run
from nfsd3d.export.formats.source.mesh import read_mesh
from nfsd3d.generators.mesh.surface import SurfaceMesh

ASSIMP_FORMATS = ("glb", "obj", "ply", "stl", "3mf")
TRIMESH_FORMATS = ("glb", "obj", "ply", "stl", "3mf")
SLICER_FORMATS = ("obj", "stl", "3mf")

RADIUS = 1.0
"""Half-width of the cube that a converted mesh is read into. Where it stands in it does not matter."""


def open_in_assimp(path: Path, assimp: Path) -> tuple[dict[str, object], SurfaceMesh]:
    """Converts a mesh file to GLB with assimp's command line; returns what it is, and the mesh in the GLB.

    Raises:
        InputError: assimp is not there, or cannot read the file.
    """
    version = re.search(r"Version (\d+\.\d+)", run([assimp, "version"]))
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "model.glb"
        printed = run([assimp, "export", path.resolve(), written])
        if not written.is_file():
            raise InputError(f"{assimp}: {(printed.strip() or 'wrote nothing').splitlines()[-1]}")
        program, size = f"assimp {version[1] if version else '?'}", _size(trimesh.load_scene(written))
        try:
            return {"program": program, "size": size}, read_mesh(written, RADIUS).mesh
        except InputError as error:
            raise InputError(f"{assimp}: misreads it: {str(error).rpartition(f'{written}: ')[2]}") from error


def open_in_trimesh(path: Path) -> tuple[dict[str, object], SurfaceMesh]:
    """Reads a mesh file with trimesh, and what trimesh writes of it as GLB.

    Raises:
        InputError: trimesh cannot read the file.
    """
    try:
        scene = trimesh.load_scene(path)
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "model.glb"
            scene.export(written)
            found: dict[str, object] = {"program": f"trimesh {trimesh.__version__}", "size": _size(scene)}
            return found, read_mesh(written, RADIUS).mesh
    except InputError:
        raise
    except Exception as error:  # whatever it is, it is what the program makes of the file
        raise InputError(f"trimesh: {type(error).__name__}: {error}") from error


def measure_in_slicer(path: Path, slicer: Path) -> dict[str, object]:
    """The "size" in millimetres that PrusaSlicer's command line gives an object of the file.

    Raises:
        InputError: the program is not there, or cannot read the file.
    """
    printed = run([slicer, "--info", path.resolve()])
    sizes = re.findall(r"^size_([xyz]) = ([\d.]+)", printed, re.MULTILINE)
    if len(sizes) != 3:
        raise InputError(f"{slicer}: {(printed.strip() or 'said nothing').splitlines()[-1]}")
    version = re.search(r"PrusaSlicer-(\d+\.\d+)", run([slicer, "--help"]))
    return {"program": f"PrusaSlicer {version[1] if version else '?'}", "size": [float(size) for _, size in sizes]}


def _size(scene: trimesh.Scene) -> list[float]:
    """The sides of the bounding box, in the file's axes."""
    if scene.extents is None:
        raise InputError("there is no mesh in it")
    return [float(side) for side in scene.extents]
