"""Checks of exported meshes: closed, equal to the field's views, and readable by other programs.

The other programs are not dependencies: Khronos' validator and three.js are npm packages, Blender is the Python package
``bpy`` (in a separate environment), the browser is Chromium. Each check gets its program's location.
"""

import base64
import json
import math
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import torch
import trimesh
from numpy.typing import NDArray

from nfsd3d.errors import InputError
from nfsd3d.export.formats.read_glb import is_placed, read_glb, world_glb
from nfsd3d.export.texture.rasterize import draw
from nfsd3d.generators.base import RenderOptions, SceneGenerator
from nfsd3d.generators.mesh.surface import SurfaceMesh
from nfsd3d.views.cameras import Cameras, orbit
from nfsd3d.visualize.image_grid import Image, square
from nfsd3d.visualize.images import to_uint8

BACKGROUND = 0.5
"""Gray background of the mesh's and the field's views."""

PLACE = (1.2, 0.9, 2.2)
"""Camera position in other programs' images: world units to the left, up and to the front of the centre."""

NPM_PACKAGES = ("gltf-validator@2.0.0-dev.3.10", "three@0.187.0")
PROGRAM_SECONDS = 600

# Headless Chromium without a GPU; pages and three.js's modules are local files.
_CHROMIUM = (
    *("--headless=new", "--no-sandbox", "--hide-scrollbars", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--ignore-gpu-blocklist", "--allow-file-access-from-files", "--virtual-time-budget=20000"),
)

_VALIDATE = """
const validator = require("gltf-validator");
const bytes = new Uint8Array(require("fs").readFileSync(process.argv[1]));
validator.validateBytes(bytes, { maxIssues: 20 }).then((report) => console.log(JSON.stringify(report)));
"""

_BLENDER = """
import math, sys
import bpy

glb, output, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.import_scene.gltf(filepath=glb)
scene = bpy.context.scene
images = [i for i in bpy.data.images if i.size[0]]
meshes = [o for o in bpy.data.objects if o.type == "MESH"]
world = bpy.data.worlds.new("white")
world.use_nodes = True
world.node_tree.nodes["Background"].inputs[0].default_value = (1, 1, 1, 1)
scene.world = world
camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
scene.collection.objects.link(camera)
scene.camera = camera
camera.data.angle = math.radians(45)
left, up, front = map(float, sys.argv[4:7])
camera.location = (left, -front, up)  # glTF's front (+Z) is Blender's -y
camera.rotation_euler = (math.atan2(math.hypot(left, front), up), 0, math.atan2(left, front))
scene.render.engine = "CYCLES"
scene.cycles.device, scene.cycles.samples, scene.cycles.use_denoising = "CPU", 8, False
scene.view_settings.view_transform = "Standard"
scene.render.resolution_x = scene.render.resolution_y = size
scene.render.filepath = output
bpy.ops.render.render(write_still=True)
print("RESULT", len(meshes), sum(len(m.data.polygons) for m in meshes), *[f"{i.size[0]}x{i.size[1]}" for i in images])
"""

_THREE_PAGE = """<!doctype html><meta charset="utf-8"><style>body { margin: 0 }</style>
<script type="importmap">
{ "imports": { "three": "MODULES/three/build/three.module.js", "three/addons/": "MODULES/three/examples/jsm/" } }
</script>
<script type="module">
  import * as THREE from "three";
  import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";
  const renderer = new THREE.WebGLRenderer({ antialias: true, preserveDrawingBuffer: true });
  renderer.setSize(SIZE, SIZE);
  document.body.appendChild(renderer.domElement);
  const scene = new THREE.Scene();
  scene.background = new THREE.Color(0x808080);
  scene.add(new THREE.AmbientLight(0xffffff, Math.PI));
  const camera = new THREE.PerspectiveCamera(45, 1, 0.1, 10);
  camera.position.set(LEFT, UP, FRONT);
  camera.lookAt(0, 0, 0);
  new GLTFLoader().load("MODEL", (gltf) => {
    scene.add(gltf.scene);
    renderer.render(scene, camera);
  });
</script>
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
    """Installs the validator and three.js into ``tools``, with npm.

    Raises:
        InputError: npm is not there, or fails.
    """
    tools.mkdir(parents=True, exist_ok=True)
    _run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(tools), *NPM_PACKAGES])


def validate_glb(path: Path, tools: Path) -> dict[str, Any]:
    """The report of Khronos' validator on a GLB: numbers of "errors", "warnings", "infos", "hints", and the "messages".

    Raises:
        InputError: node or the package is not there.
    """
    output = _run(["node", "-e", _VALIDATE, str(path.resolve())], cwd=tools)
    issues = json.loads(output)["issues"]
    counts = {name: issues[f"num{name.capitalize()}"] for name in ("errors", "warnings", "infos", "hints")}
    return {**counts, "messages": [f"{m['code']}: {m['message']}" for m in issues["messages"]]}


def render_in_blender(path: Path, output: Path, python: Path, size: int = 384) -> dict[str, Any]:
    """Opens a GLB in Blender, lit from all sides, and renders ``output``; returns what Blender found in the file.

    ``python`` is an interpreter with the package ``bpy``.

    Raises:
        InputError: it lacks the package, or Blender fails.
    """
    arguments = [str(path.resolve()), str(output.resolve()), str(size), *map(str, PLACE)]
    printed = _run([str(python), "-c", _BLENDER, *arguments])
    found = next(line for line in printed.splitlines() if line.startswith("RESULT")).split()
    return {"meshes": int(found[1]), "triangles": int(found[2]), "textures": found[3:]}


def render_in_three(path: Path, output: Path, tools: Path, chromium: str, size: int = 512) -> float:
    """Opens a GLB with three.js in Chromium, unlit, and writes the screenshot ``output``.

    Returns its PSNR (dB) against the rendering of the file by ``nfsd3d`` from the same camera.

    Raises:
        InputError: the browser or the package is not there.
    """
    page = output.resolve().with_suffix(".html")
    page.write_text(_three_page(path, tools / "node_modules", size), encoding="utf-8")
    screenshot(page, output, chromium, (size, size))
    page.unlink()
    left, up, front = PLACE
    away = math.hypot(left, up, front)
    camera = orbit(1, size, math.degrees(math.asin(up / away)), away, 45.0, math.degrees(math.atan2(left, front)))
    image, shown = draw(read_glb(path), camera)
    image[~shown] = 128 / 255
    return _psnr(imageio.imread(output)[..., :3].astype(np.float32) / 255, image)


def _three_page(path: Path, modules: Path, size: int) -> str:
    left, up, front = PLACE
    # The model is inlined: browsers restrict or forbid fetch() of local files.
    model = f"data:model/gltf-binary;base64,{base64.b64encode(path.read_bytes()).decode()}"
    values = {"MODULES": modules.resolve().as_uri(), "MODEL": model, "SIZE": size}
    values |= {"LEFT": left, "UP": up, "FRONT": front}
    # All replacements in one pass, because a path may contain a placeholder.
    return re.sub(rf"\b({'|'.join(values)})\b", lambda match: str(values[match[0]]), _THREE_PAGE)


def screenshot(page: Path, output: Path, chromium: str, size: tuple[int, int]) -> None:
    """Writes the screenshot ``output`` of a page in Chromium, offline, in a window of ``size`` (width, height) pixels.

    Raises:
        InputError: the browser is not there.
    """
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    window = f"--window-size={size[0]},{size[1]}"
    _run([chromium, *_CHROMIUM, offline, window, f"--screenshot={output.resolve()}", page.resolve().as_uri()])


def _run(command: list[str], cwd: Path | None = None) -> str:
    """The standard output of a program.

    Raises:
        InputError: it is not there, fails or does not end.
    """
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PROGRAM_SECONDS, check=True)
    except OSError as error:
        raise InputError(f"{command[0]}: cannot be started ({error.strerror}); is it installed?") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{command[0]}: not done after {PROGRAM_SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{command[0]}: failed ({last})") from error
    return done.stdout
