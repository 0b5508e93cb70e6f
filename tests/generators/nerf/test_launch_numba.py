"""Compilation and launch of numba kernels."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from small_settings import HASH_GRID

from nfsd3d.generators.nerf import launch_numba
from nfsd3d.generators.nerf.hashgrid.encoding import hash_encoding


def test_an_unwritable_folder_only_disables_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    njit = numba.njit

    def read_only(*function, **options):
        if "parallel" in options:  # numba compiles functions of its own, too
            asked.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function 'double': no locator available for file '/nowhere'")
        return njit(*function, **options)

    monkeypatch.setattr(numba, "njit", read_only)

    @launch_numba.kernel()
    def double(values, result):
        for index in numba.prange(values.shape[0]):
            result[index] = 2 * values[index]

    assert asked == [True, False]
    result = torch.empty(5)
    launch_numba.launch(double, torch.arange(5.0), result)
    assert result.tolist() == [0, 2, 4, 6, 8]


def test_other_compiler_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**options):
        raise RuntimeError("out of order")

    monkeypatch.setattr(numba, "njit", broken)
    with pytest.raises(RuntimeError, match="out of order"):
        launch_numba.kernel()(lambda: None)


def test_scalars_keep_their_type() -> None:
    seen = []
    launch_numba.launch(lambda *arguments: seen.extend(arguments), np.uint32(7), torch.ones(2), 3)
    assert isinstance(seen[0], np.uint32)
    assert isinstance(seen[1], np.ndarray)
    assert seen[2] == 3


def test_two_threads_can_encode_at_the_same_time() -> None:
    """Numba's workqueue layer would abort the process."""
    encoding = hash_encoding(replace(HASH_GRID, levels=4, log2_entries=8), "numba")
    torch.nn.init.normal_(encoding.table)
    x = torch.rand(20_000, 3)
    expected = encoding(x)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: encoding(x), range(16)):
            torch.testing.assert_close(found, expected)


BUSY = """
import json, time
from pathlib import Path
import torch
from nfsd3d.generators.nerf import launch_numba
import numba, numpy as np
torch.set_num_threads(2)

@launch_numba.kernel()
def increase(values):
    for index in numba.prange(values.shape[0]):
        values[index] += 1

values, matrix = torch.zeros(4_000_000), torch.ones(600, 600)
launch_numba.launch(increase, values), matrix @ matrix

def times():
    stat = {path.parent.name: path.read_text() for path in Path("/proc/self/task").glob("*/stat")}
    return {thread: sum(map(int, text.rpartition(")")[2].split()[11:13])) for thread, text in stat.items()}

def busy(work):
    before, begin = times(), time.process_time()
    while time.process_time() < begin + 1:
        work()
    spent = {thread: ticks - before.get(thread, 0) for thread, ticks in times().items()}
    return sorted(thread for thread, ticks in spent.items() if ticks > 0.1 * sum(spent.values()))

found = busy(lambda: launch_numba.launch(increase, values)), busy(lambda: matrix @ matrix)
print(json.dumps([numba.threading_layer(), *found]))
"""


def environment(threads: int) -> dict[str, str]:
    """Of a process in which numba chooses its layer, with at most so many threads."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_THREADING")}
    return {**kept, "NUMBA_NUM_THREADS": f"{threads}", "OMP_NUM_THREADS": f"{threads}"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_kernels_run_on_torchs_threads() -> None:
    """Two pools on the same cores starve each other."""
    done = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, text=True, check=True, env=environment(2))
    layer, numba_threads, torch_threads = json.loads(done.stdout)
    assert len(numba_threads) == 2
    has_layer = (
        subprocess.run([sys.executable, "-c", "from numba.np.ufunc import omppool"], check=False).returncode == 0
    )
    if has_layer and launch_numba._finds_torchs_openmp():
        assert layer == "omp" and numba_threads == torch_threads
    else:
        assert layer == "workqueue"


COUNTS = """
import sys
import torch
from nfsd3d.generators.nerf import launch_numba
import numba, numpy as np
torch.set_num_threads(int(sys.argv[1]))

@launch_numba.kernel()
def increase(values):
    for index in numba.prange(values.shape[0]):
        values[index] += 1

for _ in range(2):
    launch_numba.launch(increase, torch.zeros(1000))
    print(torch.get_num_threads(), numba.get_num_threads())
"""


@pytest.mark.parametrize(("of_numba", "of_torch"), [(2, 1), (1, 2), (2, 2)])
def test_kernels_leave_torch_the_number_of_its_threads(of_numba: int, of_torch: int) -> None:
    """numba's OpenMP layer would set it when it starts."""
    command = [sys.executable, "-c", COUNTS, f"{of_torch}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(of_numba))
    assert done.stdout.splitlines() == [f"{of_torch} {min(of_numba, of_torch)}"] * 2


def test_other_openmp_libraries_leave_numba_its_own_threads() -> None:
    program = (
        "import ctypes, torch, numba\n"
        "class Nothing:\n    def __init__(self, *arguments, **options): pass\n"
        "ctypes.CDLL = Nothing\n"
        "from nfsd3d.generators.nerf import launch_numba\n"
        "print(numba.config.THREADING_LAYER)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment(2)
    )
    assert done.stdout.strip() == "workqueue"


EVERY_KERNEL = """
import torch
from dataclasses import replace
from small_settings import CAMERAS, HASH_GRID, NERF
from nfsd3d.generators.base import RenderOptions
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.views.cameras import sample_cameras

settings = replace(NERF, encoding=replace(HASH_GRID, levels=2), normals="analytic", samples_per_ray=16)
nerf = NeRF(settings, field_backend="numba", sampler_backend="numba")
cameras = sample_cameras(torch.Generator(), 1, 8, CAMERAS)
view = nerf.render(cameras, options=RenderOptions(normals=True))
(view.image.sum() + view.normal.sum()).backward()
"""


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    """A kernel that numba cannot find in its cache takes seconds of every run, and the cache grows with each."""
    places = {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    found = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", EVERY_KERNEL], check=True, env={**environment(1), **places})
        found.append(sorted(path.name for path in tmp_path.rglob("*.nbc")))
    assert found[0] == found[1]
    kernels = {name.partition("-")[0].rpartition(".")[2] for name in found[0]}
    assert kernels >= {"forward", "backward_table", "backward_positions", "_mark", "_fill", "_weights", "_sums"}
