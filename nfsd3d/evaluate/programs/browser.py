"""three.js and model-viewer in headless Chromium. Both are npm packages."""

import base64
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from nfsd3d.errors import InputError
from nfsd3d.evaluate.programs.run import run
from nfsd3d.evaluate.programs.stage import FIELD_OF_VIEW_DEG, PLACE, SIZE

THREE_FORMATS = ("glb", "obj", "ply", "stl", "3mf", "usdz")
VIEWER_FORMATS = ("glb",)

NPM_PACKAGES = ("gltf-validator@2.0.0-dev.3.10", "three@0.187.0", "@google/model-viewer@4.4.0")

SECONDS = 60
"""Limit of one page."""

# Without a GPU, and offline.
_CHROMIUM = (
    *("--headless=new", "--no-sandbox", "--hide-scrollbars", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--ignore-gpu-blocklist", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
)

# MeshBasicMaterial in place of a lit one shows colours as they are. Geometry without a material gets one.
_THREE = """<!doctype html><meta charset="utf-8">
<script type="importmap">
{ "imports": { "three": "/modules/three/build/three.module.js", "three/addons/": "/modules/three/examples/jsm/" } }
</script>
<script type="module">
  import * as THREE from "three";
  const { file, suffix, material, size, fov, place } = VALUES;
  const say = (values) => fetch("/result", { method: "POST", body: JSON.stringify(values) });
  const main = "/mesh/" + encodeURIComponent(file), manager = new THREE.LoadingManager();
  const loaded = new Promise((resolve) => { manager.onLoad = resolve; });
  const geometry = (found) => {
    return new THREE.Mesh(found, new THREE.MeshBasicMaterial({ vertexColors: !!found.attributes.color }));
  };
  const loaders = {
    glb: async () => {
      const { GLTFLoader } = await import("three/addons/loaders/GLTFLoader.js");
      const { MeshoptDecoder } = await import("three/addons/libs/meshopt_decoder.module.js");
      return (await new GLTFLoader(manager).setMeshoptDecoder(MeshoptDecoder).loadAsync(main)).scene;
    },
    obj: async () => {
      const { OBJLoader } = await import("three/addons/loaders/OBJLoader.js");
      const { MTLLoader } = await import("three/addons/loaders/MTLLoader.js");
      const loader = new OBJLoader(manager);
      if (material) {
        const materials = await new MTLLoader(manager).loadAsync("/mesh/" + encodeURIComponent(material));
        materials.preload();
        loader.setMaterials(materials);
      }
      return await loader.loadAsync(main);
    },
    ply: async () => {
      const { PLYLoader } = await import("three/addons/loaders/PLYLoader.js");
      return geometry(await new PLYLoader(manager).loadAsync(main));
    },
    stl: async () => {
      const { STLLoader } = await import("three/addons/loaders/STLLoader.js");
      return geometry(await new STLLoader(manager).loadAsync(main));
    },
    "3mf": async () => {
      const { ThreeMFLoader } = await import("three/addons/loaders/3MFLoader.js");
      return await new ThreeMFLoader(manager).loadAsync(main);
    },
    usdz: async () => {
      const { USDLoader } = await import("three/addons/loaders/USDLoader.js");
      return await new USDLoader(manager).loadAsync(main);
    },
  };
  try {
    const model = await loaders[suffix]();
    await loaded;  // textures of MTL and USD load on their own
    await new Promise((resolve) => setTimeout(resolve, 500));
    const scene = new THREE.Scene();
    scene.add(model);
    let textures = 0, colors = 0;
    model.traverse((part) => {
      if (!part.isMesh) return;
      const unlit = (old) => {
        textures += old.map ? 1 : 0;
        colors += part.geometry.attributes.color ? 1 : 0;
        return new THREE.MeshBasicMaterial({ map: old.map ?? null, color: old.color, vertexColors: old.vertexColors });
      };
      part.material = Array.isArray(part.material) ? part.material.map(unlit) : unlit(part.material);
    });
    scene.updateMatrixWorld(true);
    const box = new THREE.Box3().setFromObject(model, true);
    const sides = box.getSize(new THREE.Vector3()), middle = box.getCenter(new THREE.Vector3());
    const side = Math.max(sides.x, sides.y, sides.z);
    const camera = new THREE.PerspectiveCamera(fov, 1, side / 100, side * 100);
    camera.position.set(...place).multiplyScalar(side).add(middle);
    camera.lookAt(middle);
    const renderer = new THREE.WebGLRenderer({ antialias: true, alpha: true, preserveDrawingBuffer: true });
    renderer.setClearColor(0, 0);
    renderer.setSize(size, size);
    renderer.render(scene, camera);
    say({ program: "three.js " + THREE.REVISION, size: sides.toArray(), textures, attributes: colors,
          picture: renderer.domElement.toDataURL("image/png") });
  } catch (error) {
    say({ program: "three.js " + THREE.REVISION, error: String(error) });
  }
</script>
"""

_VIEWER = """<!doctype html><meta charset="utf-8">
<style>model-viewer { width: SIDEpx; height: SIDEpx }</style>
<model-viewer id="viewer" interaction-prompt="none" loading="eager" reveal="auto" environment-image="neutral"
  tone-mapping="neutral" shadow-intensity="0" min-camera-orbit="auto auto 0m" max-field-of-view="90deg">
</model-viewer>
<script type="module" src="/modules/@google/model-viewer/dist/model-viewer.min.js"></script>
<script>
  const { file, size, fov, place } = VALUES;
  const say = (values) => fetch("/result", { method: "POST", body: JSON.stringify(values) });
  const viewer = document.getElementById("viewer"), program = "model-viewer VERSION";
  const wait = (time) => new Promise((resolve) => setTimeout(resolve, time));
  viewer.addEventListener("error", (event) => say({ program, error: String(event.detail?.sourceError ?? event.type) }));
  viewer.addEventListener("load", async () => {
    const sides = viewer.getDimensions(), middle = viewer.getBoundingBoxCenter();
    const side = Math.max(sides.x, sides.y, sides.z), [left, up, front] = place, away = Math.hypot(...place);
    viewer.maxCameraOrbit = `auto auto ${2 * away * side}m`;  // the near plane moves with it
    viewer.fieldOfView = fov + "deg";
    viewer.cameraTarget = `${middle.x}m ${middle.y}m ${middle.z}m`;
    viewer.cameraOrbit = `${Math.atan2(left, front)}rad ${Math.acos(up / away)}rad ${away * side}m`;
    viewer.jumpCameraToGoal();
    await wait(2000);
    say({ program, size: [sides.x, sides.y, sides.z], picture: viewer.toDataURL("image/png") });
  });
  viewer.src = "/mesh/" + encodeURIComponent(file);
</script>
"""


def open_in_three(path: Path, picture: Path, tools: Path, chromium: str) -> dict[str, object]:
    """Opens a mesh file with three.js and writes ``picture``, unlit, from the stage's camera (see :mod:`.stage`).

    Returns "program", "size" (of the bounding box, in three.js' units and axes), and the numbers of "textures" and
    "attributes" (vertex colours).

    Raises:
        InputError: the browser or the package is not there, or the file cannot be opened.
    """
    _package(tools, "three")
    return _opened(_THREE, path, picture, tools, chromium)


def open_in_model_viewer(path: Path, picture: Path, tools: Path, chromium: str) -> dict[str, object]:
    """Opens a GLB with model-viewer and writes ``picture``, lit by its neutral environment, from the stage's camera.

    Returns "program" and "size" (of the bounding box in metres). Errors as of :func:`open_in_three`.
    """
    version = json.loads(_package(tools, "@google/model-viewer"))["version"]
    return _opened(_VIEWER.replace("VERSION", version).replace("SIDE", str(SIZE)), path, picture, tools, chromium)


def _package(tools: Path, name: str) -> str:
    """The ``package.json`` of an npm package.

    Raises:
        InputError: it is not there.
    """
    package = tools / "node_modules" / name / "package.json"
    if not package.is_file():
        raise InputError(f"{package.parent}: no such package; add --install")
    return package.read_text(encoding="utf-8")


def _opened(page: str, path: Path, picture: Path, tools: Path, chromium: str) -> dict[str, object]:
    """What the page says of the file; its picture is written."""
    material = f"{path.stem}.mtl" if path.with_suffix(".mtl").is_file() else None
    values: dict[str, object] = {"file": path.name, "suffix": path.suffix[1:], "material": material}
    values |= {"size": SIZE, "fov": FIELD_OF_VIEW_DEG, "place": PLACE}
    with _served(page.replace("VALUES", json.dumps(values)), path.parent, tools / "node_modules") as (address, result):
        found = _visited(address, result, chromium)
    if "error" in found:
        raise InputError(f"{found['program']}: {found['error']}")
    picture.write_bytes(base64.b64decode(str(found.pop("picture")).partition(",")[2]))
    return found


class _Result:
    """What a page has sent, once ``there``."""

    def __init__(self) -> None:
        self.there = threading.Event()
        self.values: dict[str, object] = {}


class _Handler(SimpleHTTPRequestHandler):
    """Serves the page as "/", a folder of meshes as "/mesh/", npm's packages as "/modules/", and takes the result."""

    def __init__(self, page: str, folder: Path, modules: Path, result: _Result, *arguments: object) -> None:
        self.page, self.folders, self.result = page, {"mesh": folder, "modules": modules}, result
        super().__init__(*arguments)  # type: ignore[arg-type]

    def translate_path(self, path: str) -> str:
        """The file of a URL, which is below one of the two folders."""
        _, name, *rest = path.split("?")[0].split("/")
        self.directory = str(self.folders.get(name, Path("/nonexistent")).resolve())
        return super().translate_path("/" + "/".join(rest))

    def do_GET(self) -> None:
        """The page, or a file."""
        if self.path != "/":
            super().do_GET()
            return
        content = self.page.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        """The result."""
        self.result.values = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.result.there.set()
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""


@contextmanager
def _served(page: str, folder: Path, modules: Path) -> Iterator[tuple[str, _Result]]:
    """The address of a server on this machine for the page, and what it sends."""
    result = _Result()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, page, folder, modules, result)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", result
        finally:
            server.shutdown()


def _visited(address: str, result: _Result, chromium: str) -> dict[str, object]:
    """The result of the page, shown in the browser until it is there."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium, *_CHROMIUM, f"--user-data-dir={profile}", "--window-size=600,600", address]
        try:
            browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except OSError as error:
            raise InputError(f"{chromium}: cannot be started ({error.strerror}); is it installed?") from error
        try:
            end = time.monotonic() + SECONDS
            while not result.there.wait(0.1):
                if browser.poll() is not None and not result.there.is_set():
                    raise InputError(f"{chromium}: ended before the page did; is it a browser?")
                if time.monotonic() > end:
                    raise InputError(f"{chromium}: the page did not end in {SECONDS} s")
        finally:
            browser.terminate()
            browser.wait()
    return result.values


def screenshot(page: Path, output: Path, chromium: str, size: tuple[int, int]) -> None:
    """Writes the screenshot ``output`` of a page, offline, in a window of ``size`` (width, height) pixels.

    Raises:
        InputError: the browser is not there.
    """
    window = f"--window-size={size[0]},{size[1]}"
    local = ("--allow-file-access-from-files", "--virtual-time-budget=20000")
    run([chromium, *_CHROMIUM, *local, window, f"--screenshot={output.resolve()}", page.resolve().as_uri()])
