"""Device and precision of a network."""

from typing import Any

from torch import Tensor


def first_weight(network: Any) -> Tensor:
    """The first weight of a network in floating point, whose device and precision are the network's.

    Read at every step: the ``dtype`` and ``device`` of diffusers' models visit all modules, which takes half a
    millisecond for the embedded model's UNet.
    """
    weight: Tensor = next(weight for weight in network.parameters() if weight.is_floating_point())
    return weight
