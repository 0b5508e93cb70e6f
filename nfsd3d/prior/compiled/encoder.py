"""An autoencoder's encoder rewritten for torch.compile: same weights and numbers, gradient to the image only.

Problem: with torch's own layers the compiled backward pass is slow. Normalisation brings channels to the front, so that
the gradient of every convolution is converted between NHWC and NCHW twice. Convolutions keep their input, which only
gradients of weights need. Attention with a single head as wide as an autoencoder's has no fast kernel.

Idea: layers that keep the channels-last layout, convolutions that keep no input, and attention as matrix products.
docs/benchmarks.md has the measurements.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def frozen_encoder(vae: Any) -> Any:
    """An AutoencoderKL that shares its weights with ``vae``, with an ``encode`` that gives the same numbers.

    The weights receive no gradient. An autoencoder of another kind is returned unchanged.
    """
    from diffusers.models.attention_processor import AttnProcessor

    if not hasattr(vae, "quant_conv"):
        return vae
    encoder = copy.deepcopy(vae.encoder, _shared(vae.encoder))
    encoder.gradient_checkpointing = False
    for module in encoder.modules():
        for name, layer in module.named_children():
            setattr(module, name, _frozen(layer))
    for module in encoder.modules():
        if hasattr(module, "set_processor"):
            module.set_processor(AttnProcessor())  # matrix products, which the compiler can fuse
    found = copy.copy(vae)
    found._modules = {**vae._modules, "encoder": encoder, "quant_conv": _frozen(vae.quant_conv)}
    return found


def _shared(module: nn.Module) -> dict[int, Any]:
    """The memo with which a deep copy shares the weights."""
    return {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}


def _frozen(layer: nn.Module | None) -> nn.Module | None:
    """The layer without gradient to its weights where that is faster, else the layer itself."""
    if type(layer) is nn.GroupNorm:
        return _of_class(_FrozenGroupNorm, layer)
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros":
        return _of_class(_FrozenConv2d, layer)
    return layer


def _of_class(kind: type[nn.Module], layer: nn.Module) -> nn.Module:
    """The layer as an instance of ``kind``, a subclass of its class, with the same settings and weights."""
    found = kind.__new__(kind)
    found.__dict__ = layer.__dict__
    return found


class _FrozenGroupNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = _Normalize.apply(input, self.weight, self.bias, self.num_groups, self.eps)
        return result


class _Normalize(torch.autograd.Function):
    """Group normalisation of [B,C,...] in float32, in the memory layout of its input.

    Sums go over the positions of each channel first, which reads channels-last memory contiguously, and then over the
    channels of a group.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        variances, means = torch.var_mean(x.float(), dim=_positions(x), correction=0, keepdim=True)
        variance, mean = torch.var_mean(means.unflatten(1, (groups, -1)), dim=2, correction=0, keepdim=True)
        variance = variance + _over_group(variances, groups)
        mean, factor = (_to_channels(values, x) for values in (mean, (variance + eps).rsqrt()))
        ctx.save_for_backward(x, weight, mean, factor)
        ctx.groups = groups
        return _in_type_of(x, (x.float() - mean) * (factor * _by_channel(weight, x)) + _by_channel(bias, x))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, factor = ctx.saved_tensors
        scale, centered = _by_channel(weight, x), x.float() - mean
        change = gradient.float()
        # A shift or a scaling of a whole group does not change the result: project both out of the gradient.
        shift, scaling = (
            _to_channels(_over_group(scale * values.mean(_positions(x), keepdim=True), ctx.groups), x)
            for values in (change, change * centered)
        )
        to_x = factor * (change * scale - shift - centered * (factor.square() * scaling))
        return _in_type_of(x, to_x), None, None, None, None


def _positions(x: Tensor) -> tuple[int, ...]:
    """The axes of [B,C,...] but the first two."""
    return tuple(range(2, x.ndim))


def _over_group(values: Tensor, groups: int) -> Tensor:
    """[B,groups,1,...] means over the channels of each group of [B,C,1,...]."""
    return values.unflatten(1, (groups, -1)).mean(2, keepdim=True)


def _to_channels(values: Tensor, x: Tensor) -> Tensor:
    """[B,C,1,...]: group values [B,groups,1,1,...] repeated for each channel of ``x`` [B,C,...]."""
    groups = values.shape[1]
    return values.expand(-1, -1, x.shape[1] // groups, *(1 for _ in _positions(x))).flatten(1, 2)


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    """``values`` [C] in float32, shaped to broadcast with ``x`` [B,C,...]."""
    return values.float().view(-1, *(1 for _ in _positions(x)))


def _in_type_of(x: Tensor, values: Tensor) -> Tensor:
    # The compiler of torch 2.11 loses the gradient of a function that ends with a "to" without effect.
    return values if values.dtype == x.dtype else values.to(x.dtype)


class _FrozenConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = _Convolve.apply(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        return result


class _Convolve(torch.autograd.Function):
    """A convolution that does not keep its input; the gradient to it is the transposed convolution."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry = stride, padding, dilation, groups
        ctx.size = x.shape[2:]
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        # Rows and columns at the far end that the kernel did not reach.
        axes = zip(ctx.size, gradient.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        missing = [n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, k, s, p, d in axes]
        to_x = F.conv_transpose2d(gradient, weight, None, stride, padding, missing, groups, dilation)
        return to_x, *[None] * 6
