"""Random numbers of a batch that several processes share: each process draws all of them and takes its own.

So the processes together compute what one process computes with the same seed.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class SharedGenerator(torch.Generator):
    """The random generator of one of ``count`` processes with equal shares of a batch, for :func:`draw`.

    ``whole`` is the generator of the whole batch, in the same state in all processes. ``total`` sums an integer over
    them. This generator itself has another seed in each process: code that draws from it without :func:`draw` gets
    independent numbers.
    """

    whole: torch.Generator
    index: int
    count: int
    total: Callable[[int], int]

    @classmethod
    def of(cls, whole: torch.Generator, index: int, count: int, total: Callable[[int], int]) -> "SharedGenerator":
        """The generator of process ``index``."""
        shared = cls()
        shared.manual_seed((whole.initial_seed() + index) % 2**63)
        shared.whole, shared.index, shared.count, shared.total = whole, index, count, total
        return shared


def draw(sample: Callable[..., Tensor], shape: Sequence[int], rng: torch.Generator | None) -> Tensor:
    """``sample(shape, generator=rng)``; with a `SharedGenerator` this process's part of the whole batch's numbers.

    The first dimension is that of the batch, or of all its rays.
    """
    if not isinstance(rng, SharedGenerator):
        return sample(tuple(shape), generator=rng)
    own, *rest = shape
    return sample((own * rng.count, *rest), generator=rng.whole)[own * rng.index : own * (rng.index + 1)]
