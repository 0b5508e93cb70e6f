"""A denoiser and how it is called: eagerly, traced or compiled, and what it predicts as noise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nfsd3d.context import Context
from nfsd3d.errors import InputError
from nfsd3d.prior.compiled.denoiser import CompiledDenoiser, FastDenoiser, TracedDenoiser
from nfsd3d.prior.compiled.shared_start import SharedStart, can_share, shared
from nfsd3d.prior.families.base import Family, thousand, timesteps
from nfsd3d.prior.networks import first_weight
from nfsd3d.prior.parametrizations import PARAMETRIZATIONS
from nfsd3d.prior.schedule import NoiseSchedule


class NoisePredictor:
    """The denoiser of a family, a diffusers model, frozen; latents and times are those of its training's ``process``.

    It runs in the precision it was loaded in; latents and predictions are float32, or as given.
    """

    def __init__(self, network: Any, family: Family, process: NoiseSchedule, prediction_type: str) -> None:
        """``prediction_type`` is the output of ``network``, a key of `nfsd3d.prior.parametrizations.PARAMETRIZATIONS`.

        Raises:
            InputError: a prediction type that is not known.
        """
        if prediction_type not in PARAMETRIZATIONS:
            known = ", ".join(PARAMETRIZATIONS)
            raise InputError(f"prior.model: prediction type {prediction_type!r} is not one of {known}")
        self.network = network.eval().requires_grad_(False)
        self.family, self.process = family, process
        self.fast: FastDenoiser | None = None
        """The compiled or traced denoiser."""
        self._prediction_type = prediction_type
        self._predicts = PARAMETRIZATIONS[prediction_type]
        # A UNet of Stable Diffusion that was trained as a rectified flow is given 1000 t.
        self._clock = thousand if prediction_type == "flow" and family.clock is timesteps else family.clock

    def with_network(self, network: Any, process: NoiseSchedule | None = None) -> NoisePredictor:
        """The same, neither compiled nor traced, with another network of the same configuration.

        ``process`` is the same process on another device.
        """
        other = copy.copy(self)
        other.network, other.fast, other.process = network, None, process or self.process
        return other

    def compiled(self, backend: str, *, batch_unit: int, graphs: bool, blank: Context) -> NoisePredictor:
        """The same, compiled for batches of multiples of ``batch_unit``; on CUDA also captured as ``graphs``.

        ``blank`` is a condition of the right shape.
        """
        denoise = self._positional(blank)
        return self._with_fast(CompiledDenoiser(denoise, backend, batch_unit=batch_unit, captured=graphs))

    def traced(
        self,
        blank: Callable[[int], Context],
        latent_shape: tuple[int, int, int],
        *,
        after: int,
        on_failure: Callable[[Exception], None] | None,
    ) -> NoisePredictor:
        """The same, traced ``after`` so many predictions; ``blank`` gives conditions of the right shape."""
        network = self.network
        denoise, shares = self._positional(blank(1)), can_share(network)

        def example() -> tuple[Tensor, ...]:
            count = 2  # not 1, which an operation could take for a dimension to repeat
            device = first_weight(network).device
            latents = torch.zeros(count, *latent_shape, device=device)
            t = self.process.time(torch.zeros(count, dtype=torch.int64)).to(device)
            if not shares:
                return self._arguments(latents, t, blank(count))
            entries = torch.tensor([0, 1, 0], device=device)
            return *self._arguments(latents, t, blank(len(entries))), entries

        architecture = self.family.predict, type(network), repr(sorted(network.config.items()))
        traced = TracedDenoiser(
            shared(denoise, network) if shares else denoise,
            network,
            architecture,
            example,
            after=after,
            on_failure=on_failure,
        )
        return self._with_fast(SharedStart(traced) if shares else traced)

    def _with_fast(self, fast: FastDenoiser) -> NoisePredictor:
        other = copy.copy(self)
        other.fast = fast
        return other

    def eps(self, z_t: Tensor, t: Tensor, context: Context, at_most: int | None = None) -> Tensor:
        """[N,C,h,w] predicted noise. A compiled batch is padded to at most ``at_most`` entries."""
        if self.fast is None:
            return self.eager_eps(z_t, t, context.tensors)
        output = self.family.sign * self.fast(*self._arguments(z_t, t, context), at_most=at_most)
        # A copy in any precision: the next replay of a graph overwrites its output.
        return self._predicts.to_eps(self.process, z_t, output.to(z_t.dtype, copy=True), t)

    def eager_eps(self, z_t: Tensor, t: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """[N,C,h,w] predicted noise by the denoiser as it is, ``given`` the tensors of a context."""
        return self._predicts.to_eps(self.process, z_t, self._output(z_t, t, given), t)

    def x0(self, z_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """[N,C,h,w] predicted clean latents.

        Raises:
            InputError: the model predicts noise, and alpha is 0 at one of the times.
        """
        if self._prediction_type == "epsilon" and bool((self.process.alpha_bar(t) == 0).any()):
            raise InputError(
                "prior.model: predicts noise (epsilon), and its noise schedule ends without signal (alpha = 0), where "
                "no image follows from noise; correct prediction_type or rescale_betas_zero_snr in "
                "scheduler_config.json"
            )
        return self._predicts.to_x0(self.process, z_t, self._output(z_t, t, context.tensors), t)

    def _output(self, z_t: Tensor, t: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """What the denoiser predicts, in the sign of its scheduler's prediction type and in the dtype of ``z_t``."""
        dtype = first_weight(self.network).dtype
        # The camera of a LoRA network stays in the precision of its own layers.
        given = {name: value if name == "class_labels" else _in(value, dtype) for name, value in given.items()}
        times = _in(self._clock(t), z_t.dtype)
        output = self.family.predict(self.network, self._latents(z_t), times, given).to(z_t.dtype)
        return output if self.family.sign == 1 else self.family.sign * output

    def _arguments(self, z_t: Tensor, t: Tensor, context: Context) -> tuple[Tensor, ...]:
        """Latents, times and the tensors of a context as the denoiser gets them."""
        dtype = first_weight(self.network).dtype
        given = (_in(value, dtype) for _, value in sorted(context.tensors.items()))
        return self._latents(z_t), _in(self._clock(t), z_t.dtype), *given

    def _latents(self, z_t: Tensor) -> Tensor:
        """``z_t`` in the denoiser's precision; on a CPU contiguous: in channels last a UNet is a tenth slower there."""
        latents: Tensor = z_t.to(first_weight(self.network).dtype)
        return latents.contiguous() if latents.device.type == "cpu" else latents

    def _positional(self, blank: Context) -> Callable[..., Tensor]:
        """The prediction as a function of latents, times and the tensors of a context like ``blank``."""
        names, network, predict = sorted(blank.tensors), self.network, self.family.predict

        def denoise(latents: Tensor, t: Tensor, *given: Tensor) -> Tensor:
            return predict(network, latents, t, dict(zip(names, given, strict=True)))

        return denoise


def _in(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of numbers in this precision; a mask as it is."""
    return value.to(dtype) if value.is_floating_point() else value
