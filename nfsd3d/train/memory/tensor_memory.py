"""The memory of tensors over time, counted as they are created; on any device, the meta device included."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ATTENTION: Callable[..., Tensor] = F.scaled_dot_product_attention


class LiveBytes(TorchDispatchMode):
    """The bytes of tensors that are created within the block until they are freed."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        # (index of the storage, its bytes; negative when it is freed); the index is that of its first entry.
        self._changes: list[tuple[int, int]] = []
        self._known = list(known)  # keeps their addresses from being reused
        self._counted = {_address(tensor): -1 for tensor in self._known}

    def live(self) -> int:
        """Bytes of the tensors that exist now."""
        return sum(size for _, size in self._changes)

    def peak(self, without: Iterable[Tensor] = ()) -> int:
        """The most bytes at one time; ``without`` some tensors, which still exist, as if known from the start."""
        left_out = {self._counted.get(_address(tensor)) for tensor in without}
        return max(accumulate((size for index, size in self._changes if index not in left_out), initial=0))

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: Iterable[object] = (), kwargs: dict | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _address(leaf) not in self._counted:
                storage = leaf.untyped_storage()
                self._counted[_address(leaf)] = len(self._changes)
                self._changes.append((len(self._changes), storage.nbytes()))
                weakref.finalize(storage, self._forget, _address(leaf)).atexit = False
        return result

    def _forget(self, address: int) -> None:
        index = self._counted.pop(address)
        self._changes.append((index, -self._changes[index][1]))


@contextmanager
def count_bytes(known: Iterable[Tensor] = ()) -> Iterator[LiveBytes]:
    """Counts the bytes of tensors that are created within the block; ``known`` ones (parameters, inputs) are left out.

    Attention counts as the fused kernels compute it: they keep their inputs and their result, and no matrix of weights.
    Workspaces of kernels are not counted.
    """
    # Patched, because a TorchFunctionMode is not active in the backward pass, where checkpoints recompute.
    with patch.object(F, "scaled_dot_product_attention", _fused_attention), LiveBytes(known) as counter:
        yield counter


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, *further: object, **options: object) -> Tensor:
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
