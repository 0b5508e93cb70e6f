"""The results of a run: turntable and mesh of a scene, or the images; and the report."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.export.formats.table import write_meshes
from nfsd3d.export.progress import phase_progress, print_line
from nfsd3d.generators.base import ImageGenerator, SceneGenerator
from nfsd3d.generators.mesh.surface import SurfaceMesh
from nfsd3d.train.build import CONTACT_SHEET_VIEWS, Parts, mesh_extras, mesh_settings, viewing_cameras
from nfsd3d.train.outlook import Outlook
from nfsd3d.train.previews import images_of, write_images
from nfsd3d.visualize.image_grid import write_png
from nfsd3d.visualize.images import to_uint8, write_turntable

REMEDIES = {
    "turntable": "lower export.turntable_size",
    "mesh": "lower export.resolution or export.texture_size",
    "images": "lower train.batch_size",
    "report": "set export.report=false",
}
"""The setting to change if a part does not fit into memory."""


@dataclass
class Exported:
    """``files`` written (relative to the run), the ``surface``, facts about the ``mesh``, reasons of a ``failure``."""

    files: list[str] = field(default_factory=list)
    surface: SurfaceMesh | None = None
    mesh: dict[str, object] | None = None
    failure: str | None = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within the block, errors (no surface, no space, no memory) are added to ``failure`` instead of raised."""
        try:
            yield
        except (InputError, OSError) as error:
            self._fail(f"{name}: {error}")
        except torch.OutOfMemoryError:
            self._fail(f"{name}: out of GPU memory; {REMEDIES[name]}")

    def _fail(self, reason: str) -> None:
        self.failure = reason if self.failure is None else f"{self.failure}; {reason}"


def export_results(
    config: Config, run_dir: Path, parts: Parts, console: Console, outlook: Outlook, on_view: Callable[[], None]
) -> Exported:
    """Writes what ``config.export`` asks for into ``run_dir``: a scene's turntable and mesh, or the images.

    A part that fails does not prevent the others. The callback ``on_view`` is called between views and parts; it may
    raise to interrupt the export.
    """
    exported = Exported()
    if isinstance(parts.generator, SceneGenerator):
        _export_scene(config, run_dir, parts.generator, exported, console, outlook, on_view)
    else:
        with exported.part("images"):
            written = write_images(parts.generator, parts.prior, run_dir)
            if isinstance(parts.source, ImageGenerator):
                written.append(run_dir / "source.png")
                write_png(written[-1], to_uint8(images_of(parts.source, parts.prior)[0]))
            exported.files += [path.relative_to(run_dir).as_posix() for path in written]
    on_view()
    return exported


def _export_scene(
    config: Config,
    run_dir: Path,
    generator: SceneGenerator,
    exported: Exported,
    console: Console,
    outlook: Outlook,
    on_view: Callable[[], None],
) -> None:
    """Writes turntable and mesh and lists them in ``exported``."""
    settings = config.export
    if settings.turntable:
        with exported.part("turntable"):
            frames, size = settings.turntable_frames, settings.turntable_size
            views = itertools.count(1)
            with phase_progress(console, "turntable", lambda: outlook.mesh) as show_view:

                def on_frame() -> None:
                    show_view("", min(next(views) / (CONTACT_SHEET_VIEWS + frames), 1.0))
                    on_view()

                written = write_turntable(
                    generator,
                    run_dir,
                    sheet=viewing_cameras(config, CONTACT_SHEET_VIEWS, size),
                    video=viewing_cameras(config, frames, size),
                    radius=generator.radius,
                    on_progress=on_frame,
                )
            exported.files += [path.name for path in written]
    on_view()
    if settings.mesh:
        from nfsd3d.export.scene import extract_scene  # a third of a second, which the first step need not wait for

        with exported.part("mesh"):
            with phase_progress(console, "mesh") as show:

                def on_progress(stage: str, done: float) -> None:
                    show(stage, done)
                    on_view()

                extracted = extract_scene(generator, mesh_settings(config), on_progress)
            if extracted.untextured is not None:
                print_line(console, f"no texture: {extracted.untextured}")
            written = write_meshes(
                extracted.mesh, run_dir / "mesh", settings.formats, mesh_extras(config), settings, extracted.lods
            )
            exported.files += [path.relative_to(run_dir).as_posix() for path in written]
            exported.mesh, exported.surface = extracted.facts, extracted.mesh
