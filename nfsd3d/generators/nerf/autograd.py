"""Types of the context that torch passes to a custom ``torch.autograd.Function``."""

from typing import Protocol

from torch import Tensor


class Context(Protocol):
    """What a custom autograd function saves in its forward pass and reads in its backward pass."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keeps ``tensors`` for the backward pass, in ``saved_tensors``."""
        ...
