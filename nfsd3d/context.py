"""What prompts are for a denoiser: their embeddings and whatever else its family conditions on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nfsd3d.device import move


@dataclass(frozen=True)
class Context:
    """The condition of N batch entries: tensors by name, all [N,...] on one device.

    Only a prior makes them and reads ``tensors``. Usual names are ``embeddings`` [N,L,D] of the tokens, ``mask`` [N,L]
    (bool) of those that are words, ``pooled`` [N,D'] of the whole prompt, and ``time_ids`` [N,6] of its image.
    """

    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, embeddings: Tensor, **others: Tensor) -> Context:
        """The condition with ``embeddings`` [N,L,D], and others by name."""
        return cls({"embeddings": embeddings, **others})

    def __len__(self) -> int:
        """N."""
        return len(next(iter(self.tensors.values())))

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return next(iter(self.tensors.values())).device

    def __getitem__(self, entries: Tensor | slice) -> Context:
        """The batch entries that a slice, or indices (int64), choose."""
        return Context({name: value[entries] for name, value in self.tensors.items()})

    def to(self, device: torch.device | str) -> Context:
        """The same condition on ``device``."""
        return Context({name: move(value, device) for name, value in self.tensors.items()})

    def expand(self, count: int) -> Context:
        """``count`` entries, each the only one of this condition; the condition itself if it has ``count``."""
        return Context({name: value.expand(count, *value.shape[1:]) for name, value in self.tensors.items()})

    def joined(self, others: Sequence[Context]) -> Context:
        """The entries of this condition, then those of ``others``."""
        parts = [self, *others]
        return Context({name: torch.cat([part.tensors[name] for part in parts]) for name in self.tensors})

    def split(self, sizes: Sequence[int]) -> list[Context]:
        """Conditions of ``sizes`` entries each, in order."""
        parts = {name: value.split(list(sizes)) for name, value in self.tensors.items()}
        return [Context({name: part[index] for name, part in parts.items()}) for index in range(len(sizes))]

    def mixed(self, weights: Tensor) -> Context:
        """[B] linear combinations of the entries by ``weights`` [B,N]; a token of any entry with a weight is a word."""
        mixed = {}
        for name, value in self.tensors.items():
            if value.is_floating_point():
                mixed[name] = torch.einsum("bn,n...->b...", weights.to(value), value)
            else:
                mixed[name] = torch.einsum("bn,n...->b...", (weights != 0).float(), value.float()).to(value.dtype)
        return Context(mixed)

    def where(self, chosen: Tensor, other: Context) -> Context:
        """The entries of this condition where ``chosen`` [N] (bool), those of ``other`` elsewhere."""
        return Context(
            {
                name: torch.where(chosen.reshape(-1, *[1] * (value.ndim - 1)), value, other.tensors[name])
                for name, value in self.tensors.items()
            }
        )
