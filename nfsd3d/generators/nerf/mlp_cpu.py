"""An MLP of one hidden ReLU layer for the CPU, on features that are stored feature by feature.

Design note. Problem: as torch's layers, with one row a point, such an MLP takes 9 ms of a training step's forward pass
and 14 of its backward pass (100,000 points, 16 features, 32 units, two threads); most of it to write the hidden layer
to new memory and read it back. Idea: products from the left, weights times columns of points, of which the library
computes wide blocks; the ReLU in place; and the backward pass recomputes the hidden layer instead of keeping it. Takes
2 and 6 ms.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfsd3d.generators.nerf.autograd import Context

# Points whose hidden layer is computed together, and stays in the L2 cache.
PART = 4096


def perceptron(features: Tensor, hidden: Tensor, output: Tensor) -> Tensor:
    """[N,O] ``output`` [O,H] times relu(``hidden`` [H,I] times each row of ``features`` [N,I]).

    Result and gradient of the features are stored column by column (strides 1, N).
    """
    return _Perceptron.apply(features, hidden, output)


@torch.no_grad()
def first_output_gradient(features: Tensor, hidden: Tensor, output: Tensor) -> Tensor:
    """[N,I] gradient of :func:`perceptron`'s first output with respect to ``features`` [N,I], stored by columns."""
    gradient = features.new_empty(features.shape[1], features.shape[0])
    for first in range(0, features.shape[0], PART):
        part = slice(first, first + PART)
        units = hidden @ features[part].T
        to_units = torch.ops.aten.threshold_backward(output[0, :, None].expand_as(units), units, 0)
        torch.mm(hidden.T, to_units, out=gradient[:, part])
    return gradient.T


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, features: Tensor, hidden: Tensor, output: Tensor) -> Tensor:
        ctx.save_for_backward(features, hidden, output)
        result = features.new_empty(output.shape[0], features.shape[0])
        for first in range(0, features.shape[0], PART):
            part = slice(first, first + PART)
            torch.mm(output, (hidden @ features[part].T).relu_(), out=result[:, part])
        return result.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        features, hidden, output = ctx.saved_tensors
        to_features = features.new_empty(features.shape[1], features.shape[0]) if ctx.needs_input_grad[0] else None
        to_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[1] else None
        to_output = torch.zeros_like(output) if ctx.needs_input_grad[2] else None
        for first in range(0, features.shape[0], PART):
            part = slice(first, first + PART)
            columns, back = features[part].T, gradient[part].T
            shown = (hidden @ columns).relu_()
            if to_output is not None:
                to_output.addmm_(back, shown.T)
            to_units = torch.ops.aten.threshold_backward(output.T @ back, shown, 0)
            if to_hidden is not None:
                to_hidden.addmm_(to_units, columns.T)
            if to_features is not None:
                torch.mm(hidden.T, to_units, out=to_features[:, part])
        return None if to_features is None else to_features.T, to_hidden, to_output
