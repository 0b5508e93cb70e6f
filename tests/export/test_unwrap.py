"""UV unwrapping: disjoint charts of the same triangles, and a time limit."""

import signal
import subprocess

import numpy as np
import pytest
import trimesh

from nfsd3d.export.isosurface import Surface
from nfsd3d.export.texture import unwrap as unwrap_module
from nfsd3d.export.texture.rasterize import rasterize
from nfsd3d.export.texture.unwrap import UnwrapFailed, unwrap
from nfsd3d.export.texture.unwrap_worker import PART_FACES, cut


@pytest.fixture(scope="module")
def torus() -> Surface:
    mesh = trimesh.creation.torus(0.6, 0.25, major_sections=40, minor_sections=20)
    return Surface(mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32))


@pytest.fixture(scope="module")
def large() -> Surface:
    """More triangles than two parts hold, in two components."""
    torus = trimesh.creation.torus(0.6, 0.25, major_sections=120, minor_sections=60)
    ball = trimesh.creation.icosphere(3, 0.3)
    both = trimesh.util.concatenate([torus, ball])
    return Surface(both.vertices.astype(np.float32), both.faces.astype(np.int32))


@pytest.mark.parametrize("name", ["torus", "large"])
def test_charts_cover_the_texture_without_overlap(name, request):
    surface = request.getfixturevalue(name)
    charts = unwrap(surface, 256, timeout=60)
    np.testing.assert_array_equal(charts.source[charts.faces], surface.faces)
    assert charts.uv.min() >= 0 and charts.uv.max() <= 1
    corner = charts.uv[charts.faces].astype(float)
    u, v = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    areas = np.abs(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]) / 2
    assert areas.sum() > 0.4
    covered = rasterize(np.pad(corner * 2048, ((0, 0), (0, 0), (0, 1))), 2048, 2048).covered.mean()
    assert covered == pytest.approx(areas.sum(), rel=0.005)  # nothing is covered twice
    again = unwrap(surface, 256, timeout=60)  # its threads do not change the result
    np.testing.assert_array_equal(again.uv, charts.uv)
    world = surface.vertices[surface.faces].astype(float)
    true = np.linalg.norm(np.cross(world[:, 1] - world[:, 0], world[:, 2] - world[:, 0]), axis=-1) / 2
    scale = np.sqrt(areas / true)  # of the texture, the same in all parts
    assert np.percentile(scale, 95) < 2 * np.percentile(scale, 5)


@pytest.mark.parametrize("size", [2.0**-10, 2.0**12])
def test_the_charts_do_not_depend_on_the_unit(torus, size):
    """xatlas alone gives triangles below an area of 1e-7 none in the texture."""
    charts = unwrap(Surface(torus.vertices * np.float32(size), torus.faces), 256, timeout=60)
    np.testing.assert_array_equal(charts.uv, unwrap(torus, 256, timeout=60).uv)


def test_a_part_without_a_place_in_the_texture_is_a_failure(torus, monkeypatch):
    def placed(command, *_):
        faces = torus.faces.astype(np.uint32)
        uv = np.full((len(torus.vertices), 2), np.nan)
        np.savez(command[-1], source=np.arange(len(torus.vertices)), faces=faces, uv=uv)

    monkeypatch.setattr(unwrap_module, "_run", placed)
    with pytest.raises(UnwrapFailed, match="no place in the texture"):
        unwrap(torus, 256, timeout=60)


def test_a_surface_is_cut_into_small_compact_parts(large):
    centres = large.vertices[large.faces].mean(axis=1)
    parts = list(cut(centres, np.arange(len(large.faces))))
    assert len(parts) == 4 and max(map(len, parts)) <= PART_FACES
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(large.faces)))
    sizes = [np.ptp(centres[part], axis=0).max() for part in parts]
    assert max(sizes) < 0.8 * np.ptp(centres, axis=0).max()
    assert [len(part) for part in cut(centres[:5], np.arange(5))] == [5]


@pytest.fixture
def endless(tmp_path, monkeypatch) -> list:
    """A worker that never ends; yields the started processes."""
    worker = tmp_path / "worker.py"
    worker.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(unwrap_module, "WORKER", worker)
    started, popen = [], subprocess.Popen

    def start(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(unwrap_module.subprocess, "Popen", start)
    return started


def test_a_process_over_the_time_limit_is_killed(torus, endless):
    with pytest.raises(UnwrapFailed, match=r"not done after 0\.5 s"):
        unwrap(torus, 256, timeout=0.5)
    (process,) = endless
    assert process.poll() == -signal.SIGKILL


def test_an_exception_in_the_parent_kills_the_worker_process(torus, endless):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unwrap(torus, 256, timeout=600, on_wait=interrupt)
    (process,) = endless
    assert process.poll() == -signal.SIGKILL


def test_a_failure_has_the_reason_of_xatlas(torus, tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text("raise SystemExit('no charts today')\n")
    monkeypatch.setattr(unwrap_module, "WORKER", worker)
    with pytest.raises(UnwrapFailed, match="no charts today"):
        unwrap(torus, 256, timeout=60)
