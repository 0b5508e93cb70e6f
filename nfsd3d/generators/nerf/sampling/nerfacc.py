"""Ray marching with nerfacc's CUDA kernels (the only file that imports them)."""

from functools import cache

import torch
from torch import Tensor

from nfsd3d.errors import InputError
from nfsd3d.generators.nerf.occupancy import OccupancyGrid
from nfsd3d.generators.nerf.sampling.types import Fill, Lines


@cache
def nerfacc_obstacle() -> str | None:
    """Why nerfacc's CUDA kernels cannot be used, in one line; None when they can.

    nerfacc compiles them on first use, which takes minutes; a failure raises exceptions of many types.
    """
    try:
        from nerfacc.cuda._backend import _C
    except Exception as error:
        return f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    return "they are not compiled, and there is no nvcc" if _C is None else None


def check_nerfacc() -> None:
    """Raises InputError where nerfacc is not installed or its CUDA kernels cannot be used."""
    reason = nerfacc_obstacle()
    if reason is not None:
        raise InputError(
            f"backend.sampler=nerfacc: its CUDA kernels cannot be used ({reason}); docker/Dockerfile has the lines "
            "that compile them; or choose backend.sampler=torch"
        )


def march_nerfacc(lines: Lines, step: float, occupancy: OccupancyGrid) -> tuple[Tensor, Fill]:
    """The samples of ``nerfacc.traverse_grids``; implements ``types.March``.

    Raises InputError where nerfacc is not installed or its CUDA kernels cannot be used.
    """
    if lines.near.device.type != "cuda":
        raise InputError("backend.sampler=nerfacc works on CUDA only; choose backend.sampler=numba or machine=cuda")
    check_nerfacc()
    from nerfacc import traverse_grids

    if not len(lines.near):  # nerfacc divides by their number
        nothing = lines.near.new_zeros(0)
        return nothing.new_zeros(1, dtype=torch.int64), lambda total: (nothing.to(torch.int64), nothing)
    radius = occupancy.radius
    aabbs = torch.tensor([[-radius] * 3 + [radius] * 3], dtype=torch.float32, device=lines.near.device)
    _, samples, _ = traverse_grids(
        lines.origins,
        lines.directions,
        occupancy.occupied[None],
        aabbs,
        # nerfacc's first interval starts at the near plane; our first middle is ``shift`` steps behind it.
        near_planes=lines.near + (lines.shift - 0.5) * step,
        far_planes=lines.far,
        step_size=step,
    )
    # packed_info [R,2] holds each ray's first sample and its number of samples.
    offsets = torch.nn.functional.pad(samples.packed_info[:, 1].cumsum(0), (1, 0))
    return offsets, lambda total: (samples.ray_indices, samples.vals)
