"""Multiresolution hash encoding (Instant-NGP, arXiv 2201.05989): sizes, parameters and the choice of backend."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nfsd3d.errors import InputError
from nfsd3d.generators.nerf.settings import HashGridSpec

# Spatial hash of Teschner et al. 2003, as in Instant-NGP (eq. 4).
PRIMES = (1, 2654435761, 805459861)

Interpolate = Callable[[Tensor, Tensor, "Layout"], Tensor]


@dataclass(frozen=True)
class Layout:
    """Where each level of a hash grid lies in the one table of all levels.

    Tensors of length L: ``resolutions`` int64, ``offsets`` int64 (the level's first entry), ``hashed`` bool. A dense
    level keeps vertex (i, j, k) at i + j n + k n^2 with n = resolution + 1; a hashed one at
    (i P0 xor j P1 xor k P2) and (2^log2_entries - 1), ``entry_mask``.
    """

    resolutions: Tensor
    offsets: Tensor
    hashed: Tensor
    entry_mask: int
    total: int

    def to(self, device: torch.device) -> "Layout":
        """The same layout with its tensors on ``device``."""
        return Layout(
            self.resolutions.to(device), self.offsets.to(device), self.hashed.to(device), self.entry_mask, self.total
        )


def layout_of(spec: HashGridSpec) -> Layout:
    """Places the levels of ``spec`` one after the other."""
    capacity = 2**spec.log2_entries
    vertices = [(resolution + 1) ** 3 for resolution in spec.resolutions]
    sizes = torch.tensor([min(count, capacity) for count in vertices])
    ends = sizes.cumsum(0)
    return Layout(
        resolutions=torch.tensor(spec.resolutions),
        offsets=ends - sizes,
        hashed=torch.tensor([count > capacity for count in vertices]),
        entry_mask=capacity - 1,
        total=int(ends[-1]),
    )


class HashEncoding(nn.Module):
    """Trilinear interpolation in a table of learnt features, at several resolutions.

    ``forward`` maps positions [N,3] in the unit cube to [N, levels * features] and is differentiable once, to the
    table and to the positions. Beyond the cube the border cells are extrapolated.
    """

    def __init__(self, spec: HashGridSpec, interpolate: Interpolate) -> None:
        super().__init__()
        self.width = spec.width
        self._interpolate = interpolate
        self._layout = layout_of(spec)
        # Nearly zero, as in Instant-NGP: the network starts from a constant and hash collisions start without a bias.
        self.table = nn.Parameter(torch.empty(self._layout.total, spec.features).uniform_(-1e-4, 1e-4))

    def forward(self, positions: Tensor) -> Tensor:
        """[N, levels * features] for positions [N,3] in [0,1]."""
        if self._layout.offsets.device != positions.device:
            self._layout = self._layout.to(positions.device)
        return self._interpolate(positions, self.table, self._layout)


def _torch(spec: HashGridSpec) -> nn.Module:
    from nfsd3d.generators.nerf.hashgrid.torch_reference import interpolate

    return HashEncoding(spec, interpolate)


def _numba(spec: HashGridSpec) -> nn.Module:
    from nfsd3d.generators.nerf.hashgrid.numba_kernels import interpolate

    return HashEncoding(spec, interpolate)


def _triton(spec: HashGridSpec) -> nn.Module:
    try:
        from nfsd3d.generators.nerf.hashgrid.triton_kernels import interpolate
    except ImportError as error:
        raise InputError(
            f"backend.field=triton: triton cannot be imported ({error}); it comes with CUDA builds of torch for "
            "Linux; or choose backend.field=torch"
        ) from error
    return HashEncoding(spec, interpolate)


def _tcnn(spec: HashGridSpec) -> nn.Module:
    from nfsd3d.generators.nerf.hashgrid.tinycudann import TcnnHashEncoding

    return TcnnHashEncoding(spec)


ENCODINGS: dict[str, Callable[[HashGridSpec], nn.Module]] = {
    "torch": _torch,
    "numba": _numba,
    "triton": _triton,
    "tcnn": _tcnn,
}


def hash_encoding(spec: HashGridSpec, backend: str) -> nn.Module:
    """The encoding of ``spec`` by a backend of ENCODINGS; all but ``tcnn`` share their ``state_dict``.

    Raises InputError for an unknown backend or one that is not there.
    """
    if backend not in ENCODINGS:
        raise InputError(f"backend.field={backend}: unknown; choose one of {', '.join(ENCODINGS)}")
    return ENCODINGS[backend](spec)
