"""Charts: the same triangles, flat, apart from each other; and a time limit that holds."""

import time

import numpy as np
import pytest
import trimesh

from nfsd3d.export import unwrap as unwrap_module
from nfsd3d.export.isosurface import Surface
from nfsd3d.export.raster import rasterize
from nfsd3d.export.unwrap import UnwrapFailed, unwrap


@pytest.fixture(scope="module")
def torus() -> Surface:
    mesh = trimesh.creation.torus(0.6, 0.25, major_sections=40, minor_sections=20)
    return Surface(mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32))


def test_charts_cover_the_texture_without_overlap(torus):
    charts = unwrap(torus, 256, timeout=60)
    np.testing.assert_array_equal(charts.source[charts.faces], torus.faces)
    assert charts.uv.min() >= 0 and charts.uv.max() <= 1
    corner = charts.uv[charts.faces].astype(float)
    u, v = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    areas = np.abs(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]) / 2
    assert areas.sum() > 0.4
    covered = rasterize(np.pad(corner * 2048, ((0, 0), (0, 0), (0, 1))), 2048, 2048).covered.mean()
    assert covered == pytest.approx(areas.sum(), rel=0.005)  # nothing is covered twice


def test_a_process_that_takes_too_long_is_ended(torus, tmp_path, monkeypatch):
    mark = tmp_path / "still-running"
    worker = tmp_path / "worker.py"
    worker.write_text(f"import time, pathlib\ntime.sleep(3)\npathlib.Path({str(mark)!r}).touch()\n")
    monkeypatch.setattr(unwrap_module, "WORKER", worker)
    started = time.monotonic()
    with pytest.raises(UnwrapFailed, match=r"not done after 0\.5 s"):
        unwrap(torus, 256, timeout=0.5)
    assert time.monotonic() - started < 2.5
    time.sleep(3 - (time.monotonic() - started) + 0.3)
    assert not mark.exists()


def test_an_interruption_while_waiting_ends_the_process_too(torus, tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(unwrap_module, "WORKER", worker)
    processes = []
    popen = unwrap_module.subprocess.Popen
    monkeypatch.setattr(
        unwrap_module.subprocess, "Popen", lambda *args, **kw: processes.append(popen(*args, **kw)) or processes[0]
    )

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unwrap(torus, 256, timeout=60, on_wait=interrupt)
    assert processes[0].poll() is not None


def test_a_failure_is_told_with_its_reason(torus, tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text("raise SystemExit('no charts today')\n")
    monkeypatch.setattr(unwrap_module, "WORKER", worker)
    with pytest.raises(UnwrapFailed, match="no charts today"):
        unwrap(torus, 256, timeout=60)
