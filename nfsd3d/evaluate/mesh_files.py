"""Checks of exported meshes: closed, equal to the field's views, and valid. Other programs: see :mod:`.programs`."""

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray

from nfsd3d.errors import InputError
from nfsd3d.evaluate.programs.browser import NPM_PACKAGES
from nfsd3d.evaluate.programs.run import run
from nfsd3d.export.formats.read_glb import is_placed, world_glb
from nfsd3d.export.texture.rasterize import draw
from nfsd3d.generators.base import RenderOptions, SceneGenerator
from nfsd3d.generators.mesh.surface import SurfaceMesh
from nfsd3d.views.cameras import Cameras
from nfsd3d.visualize.image_grid import Image, square
from nfsd3d.visualize.images import to_uint8

BACKGROUND = 0.5
"""Gray background of the mesh's and the field's views."""

_VALIDATE = """
const validator = require("gltf-validator");
const bytes = new Uint8Array(require("fs").readFileSync(process.argv[1]));
validator.validateBytes(bytes, { maxIssues: 20 }).then((report) => console.log(JSON.stringify(report)));
"""


@dataclass(frozen=True)
class Agreement:
    """The agreement of an unlit mesh with the albedo views of its field: means over views.

    ``psnr`` in dB over whole images on the same gray; ``psnr_inside`` where both are covered; ``silhouette_iou`` of the
    mesh with opacity > 0.5, of which ``worst_iou`` is the smallest.
    """

    psnr: float
    psnr_inside: float
    silhouette_iou: float
    worst_iou: float


def find_glb(folder: Path) -> Path:
    """The ``model.glb`` in a run's folder of meshes.

    Raises:
        InputError: there is none.
    """
    path = folder / "model.glb"
    if not path.is_file():
        raise InputError(f"{path}: no such mesh; write it with `nfsd3d export RUN_DIR --formats glb`, or give --folder")
    return path


@contextmanager
def in_the_world(path: Path) -> Iterator[Path]:
    """A GLB file of the world's size and origin: ``path`` itself, or a temporary one if it was placed elsewhere."""
    if not is_placed(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        file.write_bytes(world_glb(path))
        yield file


def image_names(run_dirs: Sequence[Path]) -> list[str]:
    """A base name for the image files of each run: its folder's, with a number if that is taken."""
    names: list[str] = []
    for run_dir in run_dirs:
        name, count = run_dir.resolve().name, 1
        while name in names:
            count += 1
            name = f"{run_dir.resolve().name}-{count}"
        names.append(name)
    return names


def check_shape(path: Path) -> dict[str, Any]:
    """What trimesh finds in a mesh file after merging equal vertices: closed, outward, and the volume."""
    mesh = trimesh.load_scene(path).to_geometry()
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    return {
        "faces": len(mesh.faces),
        "watertight": bool(mesh.is_watertight),
        "consistent": bool(mesh.is_winding_consistent),
        "volume": float(mesh.volume),
    }


def compare_with_views(generator: SceneGenerator, mesh: SurfaceMesh, cameras: Cameras) -> tuple[Agreement, Image]:
    """The agreement of ``mesh`` with views of ``generator`` from ``cameras``, and images: each mesh beside its view."""
    psnr, inside, ious, images = [], [], [], []
    for index in range(len(cameras)):
        camera = cameras[index]
        view = generator.render_in_chunks(camera, RenderOptions(torch.full((1, 3), BACKGROUND)))
        expected = view.image[0].clamp(0, 1).permute(1, 2, 0).cpu().numpy()
        opaque = (view.opacity[0, 0] > 0.5).cpu().numpy()
        image, shown = draw(mesh, camera)
        image[~shown] = BACKGROUND
        psnr.append(_psnr(image, expected))
        inside.append(_psnr(image[shown & opaque], expected[shown & opaque]))
        ious.append(float((shown & opaque).sum() / max((shown | opaque).sum(), 1)))
        both = np.concatenate([image, expected], axis=1)
        images.append(to_uint8(torch.from_numpy(both).permute(2, 0, 1)))
    mean_psnr, mean_inside, mean_iou = (float(np.mean(values)) for values in (psnr, inside, ious))
    return Agreement(mean_psnr, mean_inside, mean_iou, min(ious)), square(images)


def _psnr(image: NDArray, expected: NDArray) -> float:
    error = float(np.square(image - expected, dtype=np.float64).mean()) if image.size else math.nan
    return math.inf if error == 0 else -10 * math.log10(error)


def install_npm_packages(tools: Path) -> None:
    """Installs the validator, three.js and model-viewer into ``tools``, with npm.

    Raises:
        InputError: npm is not there, or fails.
    """
    tools.mkdir(parents=True, exist_ok=True)
    # model-viewer brings a three.js of its own, and is content with no other.
    quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--legacy-peer-deps")
    run(["npm", "install", *quiet, "--prefix", tools, *NPM_PACKAGES])


def validate_glb(path: Path, tools: Path) -> dict[str, Any]:
    """The report of Khronos' validator on a GLB: numbers of "errors", "warnings", "infos", "hints", and the "messages".

    Raises:
        InputError: node or the package is not there.
    """
    output = run(["node", "-e", _VALIDATE, path.resolve()], cwd=tools)
    issues = json.loads(output)["issues"]
    counts = {name: issues[f"num{name.capitalize()}"] for name in ("errors", "warnings", "infos", "hints")}
    return {**counts, "messages": [f"{m['code']}: {m['message']}" for m in issues["messages"]]}
