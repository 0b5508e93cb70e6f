"""Latent diffusion models and rectified flows in the layout of diffusers, the embedded model among them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from nfsd3d.context import Context
from nfsd3d.device import move
from nfsd3d.errors import InputError
from nfsd3d.prior.autoencoder import Autoencoder, pixels_per_latent
from nfsd3d.prior.families.base import Family
from nfsd3d.prior.families.stable_diffusion import STABLE_DIFFUSION
from nfsd3d.prior.files.configs_and_headers import reason
from nfsd3d.prior.networks import first_weight
from nfsd3d.prior.noise_predictor import NoisePredictor
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
        self._weights = weights
        device = first_weight(denoiser).device if weights is None else weights.device
        self._predictor = NoisePredictor(denoiser, family, process.to(device), prediction_type)
        factor = pixels_per_latent(vae.config)
        self._latent_size = denoiser.config.sample_size if image_size is None else image_size // factor
        self._autoencoder = Autoencoder(vae, factor * self._latent_size, shifted=family.shifted)
        self._text_encoders = text_encoders
        self._has_text_encoders = True
        self._schedule = self._predictor.process if schedule is None else schedule.to(device)

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
        return self._predictor.family

    @property
    def denoiser(self) -> Any:
        """The denoiser, a diffusers model, frozen."""
        return self.networks[0]

    @property
    def networks(self) -> tuple[Any, Any]:
        """The denoiser and the autoencoder."""
        if self._weights is not None:
            denoiser, vae = (network.eval().requires_grad_(False) for network in self._weights.load())
            self._predictor = self._predictor.with_network(denoiser)
            self._autoencoder, self._weights = self._autoencoder.with_network(vae), None
        return self._predictor.network, self._autoencoder.network

    @property
    def _ready_predictor(self) -> NoisePredictor:
        """The denoiser with its weights."""
        _ = self.networks
        return self._predictor

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
        return first_weight(self._predictor.network).device if self._weights is None else self._weights.device

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
            of = (self._predictor.network, self._autoencoder.network)  # their configurations, with or without weights
            networks = [_new_like(network) for network in of]
        denoiser, vae = (
            torch.nn.Module.to(network, own.dtype).eval().requires_grad_(False)
            for network, own in zip(networks, of, strict=True)
        )
        copied = copy.copy(self)
        copied._predictor = self._predictor.with_network(denoiser, self._predictor.process.to("meta"))
        copied._autoencoder, copied._weights = self._autoencoder.with_network(vae), None
        copied._has_text_encoders = False
        copied._schedule = self._schedule.to("meta")
        return copied

    def check_fit(self) -> None:
        """Runs the denoiser once without weights on conditions as the text encoders gave them.

        Raises:
            InputError: it does not take them.
        """
        if not self.family.traceable:
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
        copied = copy.copy(self)
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
            predictor, blank = self._ready_predictor, self.blank_context(1)
            self._predictor = predictor.compiled(backend, batch_unit=batch_unit, graphs=graphs, blank=blank)
        if encoder:
            self._ready_autoencoder.compile(backend, graphs=graphs)

    def trace(self, *, after: int = 0, on_failure: Callable[[Exception], None] | None = None) -> None:
        """Traces the denoiser after so many predictions: see `nfsd3d.prior.compiled.denoiser.TracedDenoiser`.

        Not for a denoiser with a LoRA network, whose layers are switched on and off.
        """
        predictor = self._ready_predictor
        self._predictor = predictor.traced(self.blank_context, self.latent_shape, after=after, on_failure=on_failure)

    def compile_nothing(self) -> None:
        """Removes the compiled and traced networks: both run eagerly again."""
        self._predictor = self._predictor.with_network(self._predictor.network)
        self._autoencoder = self._autoencoder.with_network(self._autoencoder.network)

    @property
    def is_compiled(self) -> bool:
        """Whether denoiser or encoder run compiled or traced."""
        return self._predictor.fast is not None or self._autoencoder.is_compiled

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
        return self._ready_predictor.eps(*self._of_process(z_t, t), context, at_most)

    @torch.no_grad()
    def predict_x0(self, z_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """[N,C,h,w] predicted clean latents; no gradient.

        Raises:
            InputError: the model predicts noise, and alpha is 0 at one of the times.
        """
        return self._ready_predictor.x0(*self._of_process(z_t, t), context)

    def denoise(self, z_t: Tensor, t: Tensor, context: Context, class_labels: Tensor | None = None) -> Tensor:
        """As :meth:`predict_eps`, but differentiable; ``class_labels`` are for a UNet with a class embedding."""
        given = context.tensors if class_labels is None else {**context.tensors, "class_labels": class_labels}
        return self._ready_predictor.eager_eps(*self._of_process(z_t, t), given)

    def _of_process(self, z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and times of the denoiser's own process, of equal SNR and with the same noise."""
        process = self._predictor.process
        if self._schedule is process:
            return z_t, move(t, z_t.device)
        alpha, sigma = self._schedule.alpha_sigma(t, z_t)
        step = self._schedule.timestep(t)
        return z_t / (alpha.square() + sigma.square()).sqrt(), move(process.time(step), z_t.device)


def _new_like(network: ModelMixin) -> ModelMixin:
    """A network of the same class and configuration, newly initialised."""
    # AutoencoderTiny's configuration has entries that its constructor does not take, and diffusers warns of them.
    accepted = inspect.signature(type(network).__init__).parameters
    return type(network).from_config({name: value for name, value in network.config.items() if name in accepted})
