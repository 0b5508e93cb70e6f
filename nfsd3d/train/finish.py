"""After training: turntable, mesh and report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nfsd3d.errors import InputError
from nfsd3d.export.extract import ExtractedMesh, MeshSettings, extract_mesh
from nfsd3d.export.pictures import contact_sheet, turntable_frames, write_png, write_video
from nfsd3d.export.write import write_mesh
from nfsd3d.generator.nerf import NeRF
from nfsd3d.settings import Config
from nfsd3d.train.build import ELEVATION_DEG, viewing_cameras
from nfsd3d.train.report import write_report

SHEET_VIEWS = 8


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
            write_turntable(config, run_dir, generator, frames, size, on_view=on_view)
            exported.files += ["turntable.mp4", "turntable.png"]
    except OSError as error:
        failures.append(f"turntable: {error}")
    on_view()
    try:
        if settings.mesh:
            extracted = extract_mesh(generator, config.generator.radius, mesh_settings(config), config.machine.device)
            paths = write_meshes(extracted, run_dir / "mesh", settings.formats, config)
            exported.files += [path.relative_to(run_dir).as_posix() for path in paths]
            exported.mesh = mesh_facts(extracted)
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


def mesh_settings(config: Config) -> MeshSettings:
    """How the configuration wants the mesh."""
    settings = config.export
    return MeshSettings(settings.resolution, settings.threshold, settings.max_faces)


def mesh_facts(extracted: ExtractedMesh) -> dict[str, Any]:
    """Numbers about a mesh, for summaries."""
    low, high = extracted.density_range
    return {
        "vertices": len(extracted.mesh.vertices),
        "faces": len(extracted.mesh.faces),
        "threshold": round(extracted.level, 4),
        "density_range": [round(low, 4), round(high, 4)],
    }


def write_meshes(extracted: ExtractedMesh, folder: Path, formats: Sequence[str], config: Config) -> list[Path]:
    """Writes ``model.<format>`` for every format into ``folder``; returns the paths."""
    paths = [folder / f"model.{name}" for name in formats]
    for path in paths:
        write_mesh(extracted.mesh, path, mesh_extras(config))
    return paths


def mesh_extras(config: Config) -> dict[str, str | int | float]:
    """What a mesh file says about its origin."""
    return {
        "prompt": config.prompt,
        "method": config.distill.method,
        "prior": config.prior.model or config.prior.name,
        "seed": config.seed,
        "axes": "+Y up, +Z front",
    }


def write_turntable(
    config: Config,
    folder: Path,
    generator: NeRF,
    frames: int,
    size: int,
    elevation_deg: float = ELEVATION_DEG,
    on_view: Callable[[], None] | None = None,
) -> None:
    """Writes ``turntable.png`` (8 views) and ``turntable.mp4`` (``frames``), each view of ``size`` pixels."""
    sheet = contact_sheet(generator, viewing_cameras(config, SHEET_VIEWS, size, elevation_deg), on_view)
    write_png(folder / "turntable.png", sheet)
    cameras = viewing_cameras(config, frames, size, elevation_deg)
    write_video(folder / "turntable.mp4", turntable_frames(generator, cameras, config.generator.radius, on_view))
