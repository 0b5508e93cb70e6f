"""Device and precision of a network."""

from typing import Any

from torch import Tensor


def first_weight(network: Any) -> Tensor:
    """The first weight of a network in floating point; its device and precision are those of a network in one piece.

    Read at every step: the ``dtype`` and ``device`` of diffusers' models visit all modules, which takes half a
    millisecond for the embedded model's UNet.

    Raises:
        ValueError: a network without weights.
    """
    for weight in network.parameters():
        if weight.is_floating_point():
            found: Tensor = weight
            return found
    raise ValueError(f"{type(network).__name__} has no weights in floating point")
