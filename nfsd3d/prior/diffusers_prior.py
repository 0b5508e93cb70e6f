"""Latent diffusion models and rectified flows in the layout of diffusers, the embedded model among them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from nfsd3d.context import Context
from nfsd3d.device import move
from nfsd3d.errors import InputError
from nfsd3d.prior.autoencoder import Autoencoder, pixels_per_latent
from nfsd3d.prior.compiled.denoiser import CompiledDenoiser, FastDenoiser, TracedDenoiser
from nfsd3d.prior.compiled.shared_start import SharedStart, can_share, shared
from nfsd3d.prior.families.base import Family, thousand, timesteps
from nfsd3d.prior.families.stable_diffusion import STABLE_DIFFUSION
from nfsd3d.prior.files.configs_and_headers import reason
from nfsd3d.prior.networks import first_weight
from nfsd3d.prior.parametrizations import PARAMETRIZATIONS
from nfsd3d.prior.schedule import NoiseSchedule
from nfsd3d.prior.text_encoders import TextEncoders

if TYPE_CHECKING:
    from diffusers import ModelMixin


class Weights(NamedTuple):
    """Denoiser and autoencoder on ``device``, which ``load`` reads from their files."""

    load: Callable[[], tuple[Any, Any]]
    device: torch.device


class DiffusersPrior:
    """A text-to-image model of one of the families, frozen; implements :class:`nfsd3d.prior.base.Prior`.

    The networks run in the precision they were loaded in; latents, predictions and gradients are float32.
    """

    def __init__(
        self,
        denoiser: Any,
        vae: Any,
        text_encoders: TextEncoders,
        process: NoiseSchedule,
        prediction_type: str,
        *,
        family: Family = STABLE_DIFFUSION,
        image_size: int | None = None,
        schedule: NoiseSchedule | None = None,
        weights: Weights | None = None,
    ) -> None:
        """Combines the networks; `nfsd3d.prior.load_prior` reads them from a folder.

        Args:
            denoiser: the denoiser of the family, a diffusers model.
            vae: its autoencoder: AutoencoderKL, AutoencoderTiny or AutoencoderDC of diffusers.
            text_encoders: embed the prompts.
            process: forward process of the denoiser's training.
            prediction_type: output of the denoiser, a key of `nfsd3d.prior.parametrizations.PARAMETRIZATIONS`.
            family: how the denoiser is called.
            image_size: side of the images in pixels; None: the denoiser's sample size times the autoencoder's factor.
            schedule: the process that latents and times follow outside of the denoiser, where it is another one.
            weights: gives both networks when the first of them is needed, which is after the text encoders were freed;
                until then ``denoiser`` and ``vae`` are on PyTorch's meta device.

        Raises:
            InputError: a prediction type that is not known.
        """
        if prediction_type not in PARAMETRIZATIONS:
            known = ", ".join(PARAMETRIZATIONS)
            raise InputError(f"prior.model: prediction type {prediction_type!r} is not one of {known}")
        self._denoiser = denoiser.eval().requires_grad_(False)
        self._weights = weights
        factor = pixels_per_latent(vae.config)
        self._latent_size = denoiser.config.sample_size if image_size is None else image_size // factor
        self._autoencoder = Autoencoder(vae, factor * self._latent_size, shifted=family.shifted)
        self._text_encoders = text_encoders
        self._has_text_encoders = True
        self._family = family
        self._process = process.to(self.device)
        self._schedule = self._process if schedule is None else schedule.to(self.device)
        self._prediction_type = prediction_type
        self._predicts = PARAMETRIZATIONS[prediction_type]
        # A UNet of Stable Diffusion that was trained as a rectified flow is given 1000 t.
        of_flow = prediction_type == "flow" and family.clock is timesteps
        self._clock = thousand if of_flow else family.clock
        self._fast_denoiser: FastDenoiser | None = None

    @property
    def schedule(self) -> NoiseSchedule:
        """The forward process of latents and times: the one of the training, unless another clock was asked for."""
        return self._schedule

    @property
    def image_size(self) -> int:
        """Side of the images in pixels: 512 for Stable Diffusion 2.1-base."""
        return self._autoencoder.image_size

    @property
    def family(self) -> Family:
        """How its denoiser is called."""
        return self._family

    @property
    def denoiser(self) -> Any:
        """The denoiser, a diffusers model, frozen."""
        return self.networks[0]

    @property
    def networks(self) -> tuple[Any, Any]:
        """The denoiser and the autoencoder."""
        if self._weights is not None:
            networks = self._weights.load()
            self._denoiser, vae = (network.eval().requires_grad_(False) for network in networks)
            self._autoencoder, self._weights = self._autoencoder.with_network(vae), None
        return self._denoiser, self._autoencoder.network

    @property
    def _ready_autoencoder(self) -> Autoencoder:
        """The autoencoder with its weights."""
        _ = self.networks
        return self._autoencoder

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        channels = self._autoencoder.network.config.latent_channels
        return channels, self._latent_size, self._latent_size

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return first_weight(self._denoiser).device if self._weights is None else self._weights.device

    def blank_context(self, count: int) -> Context:
        """A condition of ``count`` prompts of the right shape, to run the denoiser once."""
        return self._text_encoders.blank(count, self.device)

    def tensors(self) -> list[Tensor]:
        """The weights of all networks, except freed text encoders'."""
        encoders = self._text_encoders.networks() if self._has_text_encoders else []
        return [tensor for network in (*self.networks, *encoders) for tensor in network.state_dict().values()]

    def without_weights(self) -> DiffusersPrior:
        """The same denoiser and autoencoder on PyTorch's meta device, without text encoders."""
        with torch.device("meta"):
            of = (self._denoiser, self._autoencoder.network)  # their configurations, with or without weights
            networks = [_new_like(network) for network in of]
        denoiser, vae = (
            torch.nn.Module.to(network, own.dtype).eval().requires_grad_(False)
            for network, own in zip(networks, of, strict=True)
        )
        copied = self._uncompiled()
        copied._denoiser, copied._autoencoder, copied._weights = denoiser, self._autoencoder.with_network(vae), None
        copied._has_text_encoders = False
        copied._process, copied._schedule = self._process.to("meta"), self._schedule.to("meta")
        return copied

    def check_fit(self) -> None:
        """Runs the denoiser once without weights on conditions as the text encoders gave them.

        Raises:
            InputError: it does not take them.
        """
        if not self._family.traceable:
            return
        empty = self.without_weights()
        with torch.device("meta"):
            latents, t = torch.zeros(1, *self.latent_shape), empty.schedule.time(torch.zeros(1, dtype=torch.int64))
        try:
            empty.predict_eps(latents, t, empty.blank_context(1))
        except (RuntimeError, ValueError, TypeError) as error:
            raise InputError(
                f"prior.model: the denoiser does not take what the text encoders give ({reason(error)}); choose parts "
                "of one model"
            ) from error

    def embed(self, prompts: list[str], negative: Sequence[bool] | None = None) -> Context:
        """[N] what prompts are for the denoiser, float32.

        Raises:
            InputError: a prompt has more tokens than a text encoder reads.
            RuntimeError: after :meth:`free_text_encoder`.
        """
        if not self._has_text_encoders:
            raise RuntimeError("the text encoder was freed: embed every prompt before free_text_encoder()")
        return self._text_encoders.embed(prompts, negative)

    def free_text_encoder(self) -> None:
        """Frees the text encoders' memory, once every prompt has been embedded."""
        if self._has_text_encoders:
            self._text_encoders.free()
        self._has_text_encoders = False

    def in_precision(self, dtype: torch.dtype) -> DiffusersPrior:
        """The same prior in another precision, not compiled; the shared networks are converted in place."""
        for network in self.networks:
            torch.nn.Module.to(network, dtype)  # parameter by parameter: never twice the memory
        return self._uncompiled()

    def _uncompiled(self) -> DiffusersPrior:
        copied = copy.copy(self)
        copied._autoencoder = self._autoencoder.with_network(self._autoencoder.network)
        copied.compile_nothing()
        return copied

    def compile(self, *, batch_unit: int, unet: bool = True, encoder: bool = True, backend: str = "inductor") -> None:
        """Compiles the denoiser (if ``unet``) and the encoder (if ``encoder``; not when it is checkpointed).

        Each network compiles at the first call of a shape. On CUDA it is also captured as CUDA graphs (see
        :class:`nfsd3d.prior.compiled.cuda_graphs.CapturedGraph`), so that a latent must be differentiated, if at all,
        before the next encoding of as many images.

        Graphs have fixed shapes, and NFSD's batch size varies with the timesteps. So a batch is padded to a multiple of
        ``batch_unit``, the views of a step. NFSD then has two graphs, with and without the negative prompt, instead of
        one per batch size. A single graph would evaluate the negative prompt in every step.

        ``unet`` must be false for a denoiser with a LoRA network (`nfsd3d.prior.lora`). ``backend`` is torch.compile's.
        """
        graphs = backend == "inductor" and self.device.type == "cuda"
        if unet:
            denoise = self._positional(self.denoiser)
            self._fast_denoiser = CompiledDenoiser(denoise, backend, batch_unit=batch_unit, captured=graphs)
        if encoder:
            self._ready_autoencoder.compile(backend, graphs=graphs)

    def trace(self, *, after: int = 0, on_failure: Callable[[Exception], None] | None = None) -> None:
        """Traces the denoiser after so many predictions: see `nfsd3d.prior.compiled.denoiser.TracedDenoiser`.

        Not for a denoiser with a LoRA network, whose layers are switched on and off.
        """
        network = self.denoiser
        denoise, shares = self._positional(network), can_share(network)

        def example() -> tuple[Tensor, ...]:
            count = 2  # not 1, which an operation could take for a dimension to repeat
            latents = torch.zeros(count, *self.latent_shape, device=self.device)
            t = self._process.time(torch.zeros(count, dtype=torch.int64)).to(self.device)
            if not shares:
                return self._arguments(latents, t, self.blank_context(count))
            entries = torch.tensor([0, 1, 0], device=self.device)
            return *self._arguments(latents, t, self.blank_context(len(entries))), entries

        architecture = self._family.predict, type(network), repr(sorted(network.config.items()))
        traced = TracedDenoiser(
            shared(denoise, network) if shares else denoise,
            network,
            architecture,
            example,
            after=after,
            on_failure=on_failure,
        )
        self._fast_denoiser = SharedStart(traced) if shares else traced

    def _arguments(self, z_t: Tensor, t: Tensor, context: Context) -> tuple[Tensor, ...]:
        """Latents, times and the tensors of a context as the denoiser gets them."""
        dtype = first_weight(self.denoiser).dtype
        given = (_in(value, dtype) for _, value in sorted(context.tensors.items()))
        return self._latents(z_t), _in(self._clock(t), z_t.dtype), *given

    def _latents(self, z_t: Tensor) -> Tensor:
        """``z_t`` in the denoiser's precision; on a CPU contiguous: in channels last a UNet is a tenth slower there."""
        latents: Tensor = z_t.to(first_weight(self.denoiser).dtype)
        return latents.contiguous() if latents.device.type == "cpu" else latents

    def _positional(self, network: Any) -> Callable[..., Tensor]:
        """The family's prediction by ``network`` as a function of latents, times and the tensors of a context."""
        names = sorted(self.blank_context(1).tensors)

        def denoise(latents: Tensor, t: Tensor, *given: Tensor) -> Tensor:
            return self._family.predict(network, latents, t, dict(zip(names, given, strict=True)))

        return denoise

    def compile_nothing(self) -> None:
        """Removes the compiled and traced networks: both run eagerly again."""
        self._fast_denoiser = None
        self._autoencoder = self._autoencoder.with_network(self._autoencoder.network)

    @property
    def is_compiled(self) -> bool:
        """Whether denoiser or encoder run compiled or traced."""
        return self._fast_denoiser is not None or self._autoencoder.is_compiled

    def encode(self, image: Tensor, *, checkpoint: bool = False) -> Tensor:
        """[B,C,h,w] latents of images [B,3,H,W] in [0, 1]; see `nfsd3d.prior.autoencoder.Autoencoder.encode`."""
        return self._ready_autoencoder.encode(image, checkpoint=checkpoint)

    def decode(self, z: Tensor) -> Tensor:
        """[B,3,image_size,image_size] images in [0, 1], float32, of latents [B,C,h,w]; no gradient."""
        return self._ready_autoencoder.decode(z)

    @torch.no_grad()
    def predict_eps(self, z_t: Tensor, t: Tensor, context: Context, *, at_most: int | None = None) -> Tensor:
        """[N,C,h,w] predicted noise at times ``t`` [N] given ``context`` [N]; no gradient.

        A compiled denoiser's batch is padded to at most ``at_most`` entries.
        """
        if self._fast_denoiser is None:
            return self.denoise(z_t, t, context)
        z_t, t = self._of_process(z_t, t)
        output = self._family.sign * self._fast_denoiser(*self._arguments(z_t, t, context), at_most=at_most)
        # A copy in any precision: the next replay of a graph overwrites its output.
        return self._predicts.to_eps(self._process, z_t, output.to(z_t.dtype, copy=True), t)

    @torch.no_grad()
    def predict_x0(self, z_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """[N,C,h,w] predicted clean latents; no gradient.

        Raises:
            InputError: the model predicts noise, and alpha is 0 at one of the times.
        """
        z_t, t = self._of_process(z_t, t)
        if self._prediction_type == "epsilon" and bool((self._process.alpha_bar(t) == 0).any()):
            raise InputError(
                "prior.model: predicts noise (epsilon), and its noise schedule ends without signal (alpha = 0), where "
                "no image follows from noise; correct prediction_type or rescale_betas_zero_snr in "
                "scheduler_config.json"
            )
        return self._predicts.to_x0(self._process, z_t, self._output(z_t, t, context.tensors), t)

    def denoise(self, z_t: Tensor, t: Tensor, context: Context, class_labels: Tensor | None = None) -> Tensor:
        """As :meth:`predict_eps`, but differentiable; ``class_labels`` are for a UNet with a class embedding."""
        z_t, t = self._of_process(z_t, t)
        given = context.tensors if class_labels is None else {**context.tensors, "class_labels": class_labels}
        return self._predicts.to_eps(self._process, z_t, self._output(z_t, t, given), t)

    def _output(self, z_t: Tensor, t: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """What the denoiser predicts, in the sign of its scheduler's prediction type and in the dtype of ``z_t``."""
        denoiser = self.denoiser
        dtype = first_weight(denoiser).dtype
        # The camera of a LoRA network stays in the precision of its own layers.
        given = {name: value if name == "class_labels" else _in(value, dtype) for name, value in given.items()}
        output = self._family.predict(denoiser, self._latents(z_t), _in(self._clock(t), z_t.dtype), given).to(z_t.dtype)
        return output if self._family.sign == 1 else self._family.sign * output

    def _of_process(self, z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and times of the denoiser's own process, of equal SNR and with the same noise."""
        if self._schedule is self._process:
            return z_t, move(t, z_t.device)
        alpha, sigma = self._schedule.alpha_sigma(t, z_t)
        step = self._schedule.timestep(t)
        return z_t / (alpha.square() + sigma.square()).sqrt(), move(self._process.time(step), z_t.device)


def _in(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of numbers in this precision; a mask as it is."""
    return value.to(dtype) if value.is_floating_point() else value


def _new_like(network: ModelMixin) -> ModelMixin:
    """A network of the same class and configuration, newly initialised."""
    # AutoencoderTiny's configuration has entries that its constructor does not take, and diffusers warns of them.
    accepted = inspect.signature(type(network).__init__).parameters
    return type(network).from_config({name: value for name, value in network.config.items() if name in accepted})
