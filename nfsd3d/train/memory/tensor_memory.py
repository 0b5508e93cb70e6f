"""The memory of tensors over time, counted as they are created; on any device, the meta device included."""

import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ATTENTION = F.scaled_dot_product_attention


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are created within the block until they are freed; final, a context manager.

    ``live`` bytes now, ``peak`` bytes at most. Attention counts as the fused kernels compute it: they keep their inputs
    and their result, and no matrix of weights. Workspaces of kernels are not counted.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """``known`` tensors (parameters, inputs) are not counted."""
        super().__init__()
        self.live = 0
        self.peak = 0
        # (index of the storage, its bytes; negative when it is freed); the index is that of its first entry.
        self._changes: list[tuple[int, int]] = []
        self._known = list(known)  # keeps their addresses from being reused
        self._counted = {_address(tensor): -1 for tensor in self._known}
        # Patched, because a TorchFunctionMode is not active in the backward pass, where checkpoints recompute.
        self._attention = patch.object(F, "scaled_dot_product_attention", _fused_attention)

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _address(leaf) not in self._counted:
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage, address, number = tensor.untyped_storage(), _address(tensor), len(self._changes)
        self._counted[address] = number
        self._changes.append((number, storage.nbytes()))
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, address, number, storage.nbytes()).atexit = False

    def peak_without(self, tensors: Iterable[Tensor]) -> int:
        """The peak if these tensors, which still exist, had been known from the start."""
        left_out = {self._counted[_address(tensor)] for tensor in tensors if _address(tensor) in self._counted}
        live = peak = 0
        for number, size in self._changes:
            live += 0 if number in left_out else size
            peak = max(peak, live)
        return peak

    def _forget(self, address: int, number: int, size: int) -> None:
        del self._counted[address]
        self._changes.append((number, -size))
        self.live -= size

    def __enter__(self) -> Self:
        self._attention.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._attention.__exit__(kind, error, traceback)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, *further: Any, **options: Any) -> Tensor:
    """Attention that keeps on the meta device what the fused kernels of a GPU keep."""
    if query.is_meta:
        return _AttentionShapes.apply(query, key, value)
    return _ATTENTION(query, key, value, *further, **options)


class _AttentionShapes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])
