"""Compilation and launch of numba kernels."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

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
