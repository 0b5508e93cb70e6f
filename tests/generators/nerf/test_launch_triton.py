"""Launch of Triton kernels, and their compilation for GPUs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nfsd3d
from nfsd3d.errors import InputError

pytest.importorskip("triton")

from nfsd3d.generators.nerf import launch_triton


def test_counts_are_rounded_up_to_powers_of_two() -> None:
    assert [launch_triton.power_of_two(count) for count in (1, 2, 3, 4, 5, 8, 9, 1000)] == [1, 2, 4, 4, 8, 8, 16, 1024]


def test_a_kernel_is_launched_with_its_constants_and_without_fused_multiply_adds() -> None:
    calls = []

    class Kernel:
        def __getitem__(self, programs):
            return lambda *arguments, **constants: calls.append((programs, arguments, constants))

    values = torch.ones(3)
    launch_triton.launch(Kernel(), (2, 5), values, 1.5, None, BLOCK=64)
    assert calls == [((2, 5), (values, 1.5, None), {"BLOCK": 64, "enable_fp_fusion": False})]


def test_a_cpu_tensor_is_an_input_error_outside_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_triton, "INTERPRETED", True)
    launch_triton.check_device(torch.ones(1), "backend.field")
    monkeypatch.setattr(launch_triton, "INTERPRETED", False)
    with pytest.raises(InputError, match=r"backend\.field=triton works on CUDA only.*backend\.field=numba or torch"):
        launch_triton.check_device(torch.ones(1), "backend.field")


def tiles_in_memory(intermediate: str) -> set[tuple[str, str]]:
    """Shapes of the tiles that a kernel loads, stores and adds, and how many threads of a warp lie along each axis."""
    threads = dict(re.findall(r"#(blocked\d*) = #ttg\.blocked<\{.*?threadsPerWarp = \[([\d, ]+)\]", intermediate))
    tiles = re.findall(r"tt\.(?:load|store|atomic_rmw).*?tensor<([\dx]+)x!tt\.ptr<\w+>, #(blocked\d*)>", intermediate)
    return {(shape, threads[layout]) for shape, layout in tiles}


@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles_for_gpus(capability: int, tmp_path: Path) -> None:
    """No GPU is needed: what Triton's interpreter lets pass and its compiler does not shows here."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(nfsd3d.__file__).parent.parent
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_triton.py")), str(capability)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    compiled = json.loads(result.stdout)
    names = {kernel["name"] for kernel in compiled}
    defined = {
        ".".join([*path.relative_to(root).with_suffix("").parts, name])
        for path in Path(launch_triton.__file__).parent.parent.rglob("*triton*.py")
        for name in re.findall(r"^@triton\.jit\(.*\n+def (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(defined) == 17
    assert names == defined
    for kernel in compiled:
        assert kernel["bytes"] > 0
        if kernel["name"].startswith("nfsd3d.generators.nerf.mlp_triton."):
            # Here nothing hangs on the last bit: the products are sums of fused multiply-adds, or the tensor cores'.
            of_tensor_cores = re.search(
                r"\bwgmma\.mma_async.*tf32" if capability >= 90 else r"\bmma\.sync.*tf32", kernel["ptx"]
            )
            assert bool(of_tensor_cores) == kernel["options"]["TENSOR_CORES"]
            if not kernel["options"]["TENSOR_CORES"]:
                continue
        # Rounding as torch rounds is what the bits of the marching and the fine levels of the encoding rest on; here
        # also that all of the tensor cores' work is done on tensor cores.
        assert not re.search(r"\bfma\.rn\.f32", kernel["ptx"]), kernel["name"]
    tiles = {(kernel["name"].rpartition(".")[2], shape, threads) for kernel in compiled
             for shape, threads in tiles_in_memory(kernel["ttgir"])}  # fmt: skip
    # A warp reads and writes one ray's samples side by side, and one run's corners.
    along_rays = {(name, threads) for name, shape, threads in tiles if shape == "16x32"}
    assert along_rays == {(name, "1, 32") for name in ("_contributes", "_weights", "_weights_backward")}
    assert {(name, threads) for name, shape, threads in tiles if shape == "512"} >= {("_count", "32"), ("_fill", "32")}
    assert {("_backward_table", "256x2", "32, 1"), ("_sum_by_ray", "128x8", "4, 8")} <= tiles
    atomics = {(kernel["options"]["WIDTH"], word) for kernel in compiled if "torch.float64" not in kernel["tensors"]
               for word in re.findall(r"\batom\.[\w.]+", kernel["ptx"])}  # fmt: skip
    # Never the default, which also orders memory; from sm_90 on the features of an entry go together.
    together = {2: ".v2", 8: ".v4"} if capability >= 90 else {}
    assert atomics == {(width, f"atom.global.gpu.relaxed.add{together.get(width, '')}.f32") for width in (2, 3, 8)}
