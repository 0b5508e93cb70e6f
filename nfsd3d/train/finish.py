"""After training: turntable, mesh and report."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nfsd3d.errors import InputError
from nfsd3d.export.extract import extract_mesh
from nfsd3d.export.pictures import write_turntable
from nfsd3d.export.write import write_meshes
from nfsd3d.generator.nerf import NeRF
from nfsd3d.settings import Config
from nfsd3d.train.build import SHEET_VIEWS, mesh_extras, mesh_settings, viewing_cameras
from nfsd3d.train.report import write_report


@dataclass
class Exported:
    """The ``files`` written (relative to the run), facts about the ``mesh``, and what went wrong, if anything."""

    files: list[str] = field(default_factory=list)
    mesh: dict[str, Any] | None = None
    failure: str | None = None


def finish(config: Config, run_dir: Path, generator: NeRF, on_view: Callable[[], None]) -> Exported:
    """Writes what ``config.export`` asks for into ``run_dir``; ``on_view`` is called between views.

    A part that cannot be made (no surface, no space) is told in ``failure``; the others are made nevertheless.
    """
    settings = config.export
    exported = Exported()
    extracted = None
    failures = []
    try:
        if settings.turntable:
            frames, size = settings.turntable_frames, settings.turntable_size
            written = write_turntable(
                generator,
                run_dir,
                sheet=viewing_cameras(config, SHEET_VIEWS, size),
                video=viewing_cameras(config, frames, size),
                radius=config.generator.radius,
                on_view=on_view,
            )
            exported.files += [path.name for path in written]
    except OSError as error:
        failures.append(f"turntable: {error}")
    on_view()
    try:
        if settings.mesh:
            extracted = extract_mesh(generator, config.generator.radius, mesh_settings(config), config.machine.device)
            written = write_meshes(extracted.mesh, run_dir / "mesh", settings.formats, mesh_extras(config))
            exported.files += [path.relative_to(run_dir).as_posix() for path in written]
            exported.mesh = extracted.facts
    except (InputError, OSError) as error:
        failures.append(f"mesh: {error}")
    on_view()
    try:
        if settings.report:
            write_report(run_dir, config, extracted.mesh if extracted is not None else None)
            exported.files.append("report.html")
    except OSError as error:
        failures.append(f"report: {error}")
    exported.failure = "; ".join(failures) or None
    return exported
