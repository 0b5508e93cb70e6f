"""The viewer's server: one page for each client, with the views of one scene, or of two beside each other."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial

import numpy as np
import viser

from nfsd3d.errors import InputError
from nfsd3d.export.formats.read_glb import world_glb
from nfsd3d.settings.viewer import check_host
from nfsd3d.viewer.pictures import CHANNELS, Scene, picture
from nfsd3d.viewer.pose import Pose, fitted_fov
from nfsd3d.viewer.view_loop import ViewLoop

MESH = "mesh"
NOTHING = "nothing"
PIXELS = (128, 256, 512, 720, 1080)
SHARPEST = 512
"""Height in pixels of the sharp view that a client begins with."""

Y_UP_TO_Z_UP = (0.5, 0.5, 0.5, 0.5)
"""The rotation (w, x, y, z) from the axes of GLB files to the world's: left is +y, up +z, front +x."""

CELL_COLOR = (217, 102, 58)


@dataclass(frozen=True)
class Request:
    """What a client wants to see: scenes by name (one or two), from a pose, in a window of this ratio of the sides."""

    names: tuple[str, ...]
    pose: Pose
    aspect: float
    channel: str
    pixels: int


class Viewer:
    """Serves scenes to browsers.

    Args:
        scenes: by name; each is loaded when a client chooses it, the first at once.
        host: the address that the server listens on.
        port: its port.

    Raises:
        InputError: nothing can listen there.
    """

    def __init__(self, scenes: Mapping[str, Callable[[], Scene]], host: str, port: int) -> None:
        self._load = dict(scenes)
        self._loaded: dict[str, Scene] = {}
        self._loading = threading.Lock()
        check_host(f"--host {host}", host)
        first = self.scene(next(iter(scenes)))
        with redirect_stdout(io.StringIO()):  # it prints its address in a frame, and localhost for 0.0.0.0
            self._server = viser.ViserServer(host=host, port=port, label="nfsd3d", verbose=False)
        self._server.scene.set_up_direction("+z")
        self._server.gui.configure_theme(show_logo=False, show_share_button=False)
        self._server.gui.main_panel.dock_right()
        camera = self._server.initial_camera
        camera.position, camera.look_at, camera.fov = first.start.position, first.start.look_at, first.start.fov
        self._clients: dict[int, _Client] = {}
        self._server.on_client_connect(self._connect)
        self._server.on_client_disconnect(self._disconnect)

    @property
    def port(self) -> int:
        """The port that it listens on: another one if the one asked for was taken."""
        return self._server.get_port()

    def scene(self, name: str) -> Scene:
        """The scene of a name, loaded if it is not yet."""
        with self._loading:
            if name not in self._loaded:
                self._loaded[name] = self._load[name]()
            return self._loaded[name]

    @property
    def gui(self) -> viser.GuiApi:
        """Controls that all clients see."""
        return self._server.gui

    @property
    def watched(self) -> bool:
        """Whether there is a client."""
        return bool(self._clients)

    def refresh(self) -> None:
        """Draws the scenes anew that clients see, because they have changed."""
        for client in list(self._clients.values()):
            client.refresh()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the scenes."""
        return tuple(self._load)

    def close(self) -> None:
        """Ends all views, and the server."""
        for client in list(self._clients.values()):
            client.close()
        with redirect_stdout(io.StringIO()):
            self._server.stop()

    def _connect(self, handle: viser.ClientHandle) -> None:
        self._clients[handle.client_id] = _Client(self, handle)

    def _disconnect(self, handle: viser.ClientHandle) -> None:
        client = self._clients.pop(handle.client_id, None)
        if client is not None:
            client.close()


class _Client:
    """A browser's controls and views."""

    def __init__(self, viewer: Viewer, handle: viser.ClientHandle) -> None:
        self._viewer, self._handle = viewer, handle
        names, gui = viewer.names, handle.gui
        self._names: tuple[str, ...] = names[:1]
        self._scene = gui.add_dropdown("Scene", names, initial_value=names[0])
        self._beside = gui.add_dropdown("Beside it", (NOTHING, *names), initial_value=NOTHING, visible=len(names) > 1)
        self._show = gui.add_dropdown("Show", self._choices(), initial_value=CHANNELS[0])
        self._cells = gui.add_checkbox("Occupied cells", initial_value=False)
        self._pixels = gui.add_dropdown("Pixels", tuple(map(str, PIXELS)), initial_value=str(SHARPEST))
        self._reset = gui.add_button("Reset camera")
        self._about = gui.add_markdown(viewer.scene(names[0]).about)
        self._added: dict[str, viser.SceneNodeHandle] = {}
        self._views = ViewLoop(self._draw, self._tallest)
        for control in (self._scene, self._beside, self._show, self._cells, self._pixels):
            control.on_update(lambda _: self._changed())
        self._reset.on_click(lambda _: self._to_start())
        handle.camera.on_update(lambda _: self._ask())
        self._views.start()
        self._to_start()
        self._ask()

    def close(self) -> None:
        """Ends the views."""
        self._views.stop()

    def refresh(self) -> None:
        """Shows what has changed: the scene, and whether there is a mesh."""
        if self._show.options != (choices := self._choices()):
            self._show.options = choices
        self._views.refresh()

    def _choices(self) -> tuple[str, ...]:
        scene = self._viewer.scene(self._names[0])
        return (*CHANNELS, *([MESH] if scene.mesh.is_file() else []))

    def _tallest(self, request: Request) -> int:
        aspect = request.aspect / len(request.names)
        return min(self._viewer.scene(name).tallest(request.pixels, aspect) for name in request.names)

    def _to_start(self) -> None:
        start, camera = self._viewer.scene(self._names[0]).start, self._handle.camera
        camera.position, camera.look_at = start.position, start.look_at
        self._fit()

    def _fit(self) -> None:
        """Fits the field of view to the window, or to its halves."""
        camera, fov = self._handle.camera, self._viewer.scene(self._names[0]).start.fov
        camera.fov = fitted_fov(fov, float(camera.aspect) / len(self._names))

    def _changed(self) -> None:
        """After a control: other facts, other objects in the scene, another view."""
        names = (self._scene.value, *([] if self._beside.value == NOTHING else [self._beside.value]))
        try:
            scene, *others = (self._viewer.scene(name) for name in names)
        except InputError as error:
            self._about.content = str(error)
            return
        self._names, self._about.content = names, "\n\n".join(one.about for one in (scene, *others))
        self._fit()
        alone = not others  # objects are where they are in one view only
        wanted = {
            MESH: alone and self._show.value == MESH and scene.mesh.is_file(),
            "cells": alone and self._cells.value,
        }
        with self._handle.atomic():
            for node in self._added.values():
                node.remove()
            self._added.clear()
            if wanted[MESH]:
                try:
                    self._added[MESH] = self._handle.scene.add_glb("/mesh", world_glb(scene.mesh), wxyz=Y_UP_TO_Z_UP)
                except InputError as error:  # it is compressed for the web
                    self._about.content = str(error)
            if wanted["cells"]:
                self._added["cells"] = self._handle.scene.add_point_cloud(
                    "/cells", scene.occupied(), CELL_COLOR, point_size=scene.cell / 4
                )
        self._ask()

    def _ask(self) -> None:
        camera = self._handle.camera
        pose = Pose(_vector(camera.position), _vector(camera.look_at), float(camera.fov))
        self._views.ask(Request(self._names, pose, float(camera.aspect), self._show.value, int(self._pixels.value)))

    def _draw(self, request: Request, height: int, check: Callable[[], None]) -> None:
        """Shows the view of a request with so many rows of pixels.

        Raises:
            Outdated: by ``check``.
        """
        if request.channel == MESH:
            self._handle.scene.set_background_image(None)
            return
        width = max(1, round(height * request.aspect / len(request.names)))
        draw = partial(picture, pose=request.pose, height=height, width=width, channel=request.channel, on_chunk=check)
        parts = [draw(self._viewer.scene(name)) for name in request.names]
        image = np.concatenate([part.image for part in parts], axis=1)
        depth = np.concatenate([part.depth for part in parts], axis=1) if self._added else None
        check()  # a newer view may be on its way
        self._handle.scene.set_background_image(image, format="jpeg", jpeg_quality=90, depth=depth)


def _vector(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = values
    return float(x), float(y), float(z)
