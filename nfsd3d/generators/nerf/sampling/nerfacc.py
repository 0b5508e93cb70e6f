"""Ray marching by nerfacc's CUDA kernel (the only file that imports its CUDA part)."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from nfsd3d.errors import InputError
from nfsd3d.generators.nerf.occupancy import OccupancyGrid
from nfsd3d.generators.nerf.sampling.sampling import Lines


@cache
def nerfacc_obstacle() -> str | None:
    """Why nerfacc's CUDA kernels cannot be used, in a few words; None when they can.

    It compiles them when they are first asked for, which takes minutes, and says in many ways that it could not.
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


def march_nerfacc(
    lines: Lines, step: float, occupancy: OccupancyGrid
) -> tuple[Tensor, Callable[[int], tuple[Tensor, Tensor]]]:
    """The samples that ``nerfacc.traverse_grids`` finds; see ``samplers.March``.

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
        # nerfacc's intervals start at the near plane; ours have their first middle ``shift`` steps behind it.
        near_planes=lines.near + (lines.shift - 0.5) * step,
        far_planes=lines.far,
        step_size=step,
    )
    # Of each ray, packed_info [R,2] has its first sample and how many there are.
    offsets = torch.nn.functional.pad(samples.packed_info[:, 1].cumsum(0), (1, 0))
    return offsets, lambda total: (samples.ray_indices, samples.vals)
