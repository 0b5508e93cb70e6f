"""Multiresolution hash encoding (Instant-NGP, arXiv 2201.05989): the trainable table and the choice of backend."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nfsd3d.errors import InputError
from nfsd3d.generators.nerf.autograd import Context
from nfsd3d.generators.nerf.hashgrid.layout import Layout, layout_of
from nfsd3d.generators.nerf.hashgrid.spec import HashGridSpec, check_precision

Interpolate = Callable[[Tensor, Tensor, Layout], Tensor]
"""A backend: the features [N, L * F] of positions [N,3], a table [entries, F] and its layout."""

Gradient = Callable[[Tensor, Tensor, Layout, Tensor], Tensor]
"""Its gradient with respect to one of its inputs, given that of the features [N, L * F], without a forward pass."""


class HashEncoding(nn.Module):
    """Trilinear interpolation in a table of trainable features, at several resolutions.

    ``forward`` maps positions [N,3] in the unit cube to features [N, levels * features]. It is differentiable once,
    with respect to the table and to the positions. Positions outside the cube extrapolate the border cells.
    """

    def __init__(
        self,
        spec: HashGridSpec,
        interpolate: Interpolate,
        *,
        position_gradient: Gradient | None = None,
        table_gradient: Gradient | None = None,
    ) -> None:
        super().__init__()
        self.width = spec.width
        self._interpolate = interpolate
        self._position_gradient = position_gradient
        self._table_gradient = table_gradient
        self._layout = layout_of(spec)
        # Near zero, as in Instant-NGP: the network starts from a constant, and hash collisions start without a bias.
        self.table = nn.Parameter(torch.empty(self._layout.total, spec.features).uniform_(-1e-4, 1e-4))

    def forward(self, positions: Tensor) -> Tensor:
        """[N, levels * features] for positions [N,3] in [0,1]."""
        return self._interpolate(positions, self.table, self._layout_on(positions.device))

    @property
    def has_table_gradient(self) -> bool:
        """Whether :meth:`trainable` works: the backend has a kernel for the table's gradient alone."""
        return self._table_gradient is not None

    def trainable(self, positions: Tensor, features: Tensor) -> Tensor:
        """``features`` [N, levels * features], found at ``positions`` [N,3] without gradient, differentiable.

        With respect to the table; see :attr:`has_table_gradient`.
        """
        assert self._table_gradient is not None
        return _Trainable.apply(
            self.table, features, positions, self._layout_on(positions.device), self._table_gradient
        )

    def position_gradient(self, positions: Tensor, gradient: Tensor) -> Tensor:
        """[N,3] ``gradient`` [N, levels * features] of the result with respect to ``positions``; not differentiable."""
        layout, table = self._layout_on(positions.device), self.table.detach()
        if self._position_gradient is not None:
            return self._position_gradient(positions, table, layout, gradient)
        with torch.enable_grad():
            positions = positions.detach().requires_grad_()
            return torch.autograd.grad(self._interpolate(positions, table, layout), positions, gradient)[0]

    def _layout_on(self, device: torch.device) -> Layout:
        if self._layout.offsets.device != device:
            self._layout = self._layout.to(device)
        return self._layout


class _Context(Context, Protocol):
    layout: Layout
    table_gradient: Gradient


class _Trainable(torch.autograd.Function):
    """Features that are known, whose backward pass is the encoding's."""

    @staticmethod
    def forward(
        ctx: _Context, table: Tensor, features: Tensor, positions: Tensor, layout: Layout, table_gradient: Gradient
    ) -> Tensor:
        ctx.save_for_backward(table, positions)
        ctx.layout, ctx.table_gradient = layout, table_gradient
        return features.view_as(features)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        table, positions = ctx.saved_tensors
        return ctx.table_gradient(positions, table, ctx.layout, gradient), None, None, None, None


def _torch(spec: HashGridSpec) -> nn.Module:
    from nfsd3d.generators.nerf.hashgrid.torch_reference import interpolate

    return HashEncoding(spec, interpolate)


def _numba(spec: HashGridSpec) -> nn.Module:
    from nfsd3d.generators.nerf.hashgrid import numba_kernels as kernels

    gradients = {"position_gradient": kernels.position_gradient, "table_gradient": kernels.table_gradient}
    return HashEncoding(spec, kernels.interpolate, **gradients)


def _triton(spec: HashGridSpec) -> nn.Module:
    try:
        from nfsd3d.generators.nerf.hashgrid.triton_kernels import interpolate, table_gradient
    except ImportError as error:
        raise InputError(
            f"backend.field=triton: triton cannot be imported ({error}); it comes with CUDA builds of torch for "
            "Linux; or choose backend.field=torch"
        ) from error
    half = spec.precision == "float16"
    return HashEncoding(spec, partial(interpolate, half=half), table_gradient=table_gradient)


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
    """The encoding of ``spec`` by a backend of ENCODINGS; all but ``tcnn`` have interchangeable ``state_dict``s.

    Raises InputError for an unknown backend, or one that is not installed or has no such precision.
    """
    if backend not in ENCODINGS:
        raise InputError(f"backend.field={backend}: unknown; choose one of {', '.join(ENCODINGS)}")
    check_precision(spec, backend)
    return ENCODINGS[backend](spec)
