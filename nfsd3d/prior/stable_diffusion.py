"""Latent diffusion models in the diffusers layout of Stable Diffusion, the embedded model among them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor

from nfsd3d.context import Context
from nfsd3d.device import move
from nfsd3d.errors import InputError
from nfsd3d.prior.compiled.cuda_graphs import CapturedGraph
from nfsd3d.prior.compiled.encoder import frozen_encoder
from nfsd3d.prior.compiled.shapes import channels_last, padded, padded_batch_size
from nfsd3d.prior.files.check_model import check_fit
from nfsd3d.prior.files.count_tokens import check_vocabulary, without_unknown_punctuation
from nfsd3d.prior.files.folder import ModelFiles
from nfsd3d.prior.files.load import load_model
from nfsd3d.prior.parametrizations import PARAMETRIZATIONS
from nfsd3d.prior.schedule import NoiseSchedule, RectifiedFlow

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, ModelMixin, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

Result = TypeVar("Result")

INDUCTOR_OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {
    "realize_reads_threshold": 32,
    "realize_acc_reads_threshold": 64,
}
"""For the encoder: normalisations are recomputed where the backward pass reads them, instead of stored in float32."""


class StableDiffusionPrior:
    """A latent diffusion model with a CLIP text encoder, frozen; implements :class:`nfsd3d.prior.base.Prior`.

    The networks run in the precision they were loaded in; latents, predictions and gradients are float32.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL | AutoencoderTiny,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        process: NoiseSchedule,
        prediction_type: str,
        schedule: NoiseSchedule | None = None,
    ) -> None:
        """Combines the networks; :meth:`load` reads them from a folder.

        Args:
            unet: a diffusers UNet2DConditionModel.
            vae: a diffusers AutoencoderKL or AutoencoderTiny.
            text_encoder: a transformers CLIPTextModel.
            tokenizer: its CLIPTokenizer.
            process: forward process of the UNet's training.
            prediction_type: output of the UNet, a key of `nfsd3d.prior.parametrizations.PARAMETRIZATIONS`.
            schedule: the process that latents and times follow outside of the UNet, where it is another one.

        Raises:
            InputError: the networks do not fit together, or are not those of a text-to-image model.
        """
        _check_parts(unet, vae, text_encoder, tokenizer, prediction_type)
        self._unet = unet.eval().requires_grad_(False)
        self._vae = vae.eval().requires_grad_(False)
        self._text_encoder: CLIPTextModel | None = text_encoder.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._context_length = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
        self._process = process.to(unet.device)
        self._schedule = self._process if schedule is None else schedule.to(unet.device)
        self._prediction_type = prediction_type
        self._predicts = PARAMETRIZATIONS[prediction_type]
        self._compiled_unet: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        self._compiled_encoder: Callable[[Tensor], Tensor] | None = None
        self._batch_unit = 1

    @classmethod
    def load(
        cls,
        model: str | Path | ModelFiles,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        clock: str = "own",
    ) -> StableDiffusionPrior:
        """A model from a folder, or from files that `nfsd3d.prior.files.download.fetch` gave, in precision ``dtype``.

        With the ``clock`` "flow" a diffusion model is served as a rectified flow: its latents and times are those of
        equal SNR, its predictions of the noise the same.

        Raises:
            InputError: the files cannot be read as such a model; the message names the part.
        """
        parts = load_model(model if isinstance(model, ModelFiles) else ModelFiles(Path(model)), dtype)
        networks = placed(parts.unet, parts.vae, parts.text_encoder, device)
        served = RectifiedFlow(parts.process.alphas_cumprod) if clock == "flow" else None
        return cls(*networks, parts.tokenizer, parts.process, parts.prediction_type, served)

    @property
    def schedule(self) -> NoiseSchedule:
        """The forward process of latents and times: the one of the training, unless another clock was asked for."""
        return self._schedule

    @property
    def image_size(self) -> int:
        """The denoiser's sample size times the autoencoder's factor: 512 for Stable Diffusion 2.1-base."""
        return self._unet.config.sample_size * 2 ** (len(self._vae.config.block_out_channels) - 1)

    @property
    def unet(self) -> UNet2DConditionModel:
        """The denoiser, a diffusers UNet2DConditionModel, frozen."""
        return self._unet

    @property
    def networks(self) -> tuple[UNet2DConditionModel, AutoencoderKL | AutoencoderTiny]:
        """The denoiser and the autoencoder."""
        return self._unet, self._vae

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        return self._unet.config.in_channels, self._unet.config.sample_size, self._unet.config.sample_size

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return self._unet.device

    def blank_context(self, count: int) -> Context:
        """The condition of ``count`` prompts with embeddings [count,L,D] of zeros, to run the UNet once."""
        shape = (count, self._context_length, self._unet.config.cross_attention_dim)
        return Context.of(torch.zeros(shape, device=self.device))

    def tensors(self) -> list[Tensor]:
        """The weights of all networks, except a freed text encoder's."""
        networks = (self._unet, self._vae, self._text_encoder)
        return [tensor for network in networks if network is not None for tensor in network.state_dict().values()]

    def without_weights(self) -> StableDiffusionPrior:
        """The same UNet and autoencoder on PyTorch's meta device, without a text encoder."""
        with torch.device("meta"):
            networks = [_new_like(network) for network in (self._unet, self._vae)]
        unet, vae = (
            torch.nn.Module.to(network, own.dtype).eval().requires_grad_(False)
            for network, own in zip(networks, (self._unet, self._vae), strict=True)
        )
        copied = self._uncompiled()
        copied._unet, copied._vae, copied._text_encoder = unet, vae, None
        copied._process, copied._schedule = self._process.to("meta"), self._schedule.to("meta")
        return copied

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Context:
        """[N] last hidden states [N,L,D] of the text encoder, padded to its full length L, float32.

        Punctuation without a token in a small tokenizer is replaced by a space.

        Raises:
            InputError: a prompt has more tokens than the encoder's context length.
            RuntimeError: after :meth:`free_text_encoder`.
        """
        if self._text_encoder is None:
            raise RuntimeError("the text encoder was freed: embed every prompt before free_text_encoder()")
        length = self._context_length
        prompts = [without_unknown_punctuation(prompt, self._is_unknown) for prompt in prompts]
        for prompt in prompts:
            tokens = len(self._tokenizer(prompt, verbose=False).input_ids)
            if tokens > length:
                raise InputError(
                    f"prompt={_shortened(prompt)!r} is {tokens - 2} tokens long and the prior reads {length - 2}: "
                    "shorten it"
                )
        ids = self._tokenizer(prompts, padding="max_length", max_length=length, return_tensors="pt").input_ids
        # No attention mask: these models were trained with attention to the padding.
        return Context.of(self._text_encoder(ids.to(self.device)).last_hidden_state.float())

    def free_text_encoder(self) -> None:
        """Frees the text encoder's memory, once every prompt has been embedded."""
        self._text_encoder = None

    def in_precision(self, dtype: torch.dtype) -> StableDiffusionPrior:
        """The same prior in another precision, not compiled; the shared UNet and autoencoder are converted in place."""
        for network in (self._unet, self._vae):
            torch.nn.Module.to(network, dtype)  # parameter by parameter: never twice the memory
        return self._uncompiled()

    def _uncompiled(self) -> StableDiffusionPrior:
        copied = copy.copy(self)
        copied.compile_nothing()
        return copied

    def compile(self, *, batch_unit: int, unet: bool = True, encoder: bool = True, backend: str = "inductor") -> None:
        """Compiles the UNet (if ``unet``) and the encoder (if ``encoder``; not when it is checkpointed).

        Each network compiles at the first call of a shape. On CUDA it is also captured as CUDA graphs (see
        :class:`nfsd3d.prior.compiled.cuda_graphs.CapturedGraph`), so that a latent must be differentiated, if at all,
        before the next encoding of as many images.

        Graphs have fixed shapes, and NFSD's batch size varies with the timesteps. So a batch is padded to a multiple of
        ``batch_unit``, the views of a step. NFSD then has two graphs, with and without the negative prompt, instead of
        one per batch size. A single graph would evaluate the negative prompt in every step.

        ``unet`` must be false for a UNet with a LoRA network (`nfsd3d.prior.lora`). ``backend`` is torch.compile's.
        """
        graphs = backend == "inductor" and self.device.type == "cuda"
        if unet:
            network = torch.compile(self._unet, backend=backend, dynamic=False)

            def denoise(latents: Tensor, t: Tensor, context: Tensor) -> Tensor:
                output: Tensor = network(latents, t, context, return_dict=False)[0]
                return output

            self._compiled_unet = CapturedGraph(denoise, one_memory=True) if graphs else denoise
        if encoder:
            encode = partial(_encode, frozen_encoder(self._vae))
            options = INDUCTOR_OPTIONS if backend == "inductor" else None
            compiled: Callable[[Tensor], Tensor] = torch.compile(
                encode, backend=backend, dynamic=False, options=options
            )
            self._compiled_encoder = CapturedGraph(compiled) if graphs else compiled
        self._batch_unit = batch_unit

    def compile_nothing(self) -> None:
        """Removes the compiled networks: both run eagerly again."""
        self._compiled_unet = self._compiled_encoder = None

    @property
    def is_compiled(self) -> bool:
        """Whether UNet or encoder run compiled."""
        return self._compiled_unet is not None or self._compiled_encoder is not None

    def encode(self, image: Tensor, *, checkpoint: bool = False) -> Tensor:
        """[B,C,h,w] scaled latents, float32, of images [B,3,H,W] in [0, 1]; differentiable.

        Images are resized bilinearly to ``image_size`` (with a low-pass filter when that shrinks them). Takes the
        posterior mean, so that the same image gives the same latent. With ``checkpoint`` the activations inside each
        block of the encoder (all activations of an AutoencoderTiny) are recomputed in the backward pass.
        """
        size = self.image_size
        if image.shape[-2:] != (size, size):
            shrinks = max(image.shape[-2:]) > size
            image = F.interpolate(image, (size, size), mode="bilinear", align_corners=False, antialias=shrinks)
        latent = self._encoder(channels_last((image * 2 - 1).to(self._vae.dtype)), checkpoint)
        return (latent.float() - self._shift) * self._vae.config.scaling_factor

    def _encoder(self, image: Tensor, checkpoint: bool) -> Tensor:
        """The autoencoder's latents of images in [-1, 1], in its own precision and scale."""
        tiny = not hasattr(self._vae, "quant_conv")
        if checkpoint and tiny:  # its own checkpointing leaves out its scaling of the image
            return _checkpointed(partial(_encode, self._vae), image)
        if not tiny and checkpoint != self._vae.is_gradient_checkpointing:
            if checkpoint:
                self._vae.enable_gradient_checkpointing(_checkpointed)
            else:
                self._vae.disable_gradient_checkpointing()
        if self._compiled_encoder is not None and not checkpoint:
            return self._compiled_encoder(image)
        return _encode(self._vae, image)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """[B,3,image_size,image_size] images in [0, 1], float32, of latents [B,C,h,w]; no gradient."""
        latent = z / self._vae.config.scaling_factor + self._shift
        image = self._vae.decode(latent.to(self._vae.dtype)).sample.float()
        # The decoder slightly overshoots its range, which is expected.
        return (image / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def predict_eps(self, z_t: Tensor, t: Tensor, context: Context, *, at_most: int | None = None) -> Tensor:
        """[N,C,h,w] predicted noise at times ``t`` [N] given ``context`` [N]; no gradient.

        A compiled UNet's batch is padded to at most ``at_most`` entries.
        """
        if self._compiled_unet is None:
            return self.denoise(z_t, t, context)
        z_t, t, embeddings = self._of_process(z_t, t, context)
        count, dtype = len(z_t), self._unet.dtype
        size = padded_batch_size(count, self._batch_unit, at_most)
        given = (z_t.to(dtype), self._shown(t), embeddings.to(dtype))
        latents, *conditions = (padded(values, size) for values in given)
        output = self._compiled_unet(channels_last(latents), *conditions)[:count]
        # A copy in any precision: the next replay of a graph overwrites its output.
        return self._predicts.to_eps(self._process, z_t, output.to(z_t.dtype, copy=True), t)

    @torch.no_grad()
    def predict_x0(self, z_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """[N,C,h,w] predicted clean latents; no gradient.

        Raises:
            InputError: the model predicts noise, and alpha is 0 at one of the times.
        """
        z_t, t, embeddings = self._of_process(z_t, t, context)
        if self._prediction_type == "epsilon" and bool((self._process.alpha_bar(t) == 0).any()):
            raise InputError(
                "prior.model: predicts noise (epsilon), and its noise schedule ends without signal (alpha = 0), where "
                "no image follows from noise; correct prediction_type or rescale_betas_zero_snr in "
                "scheduler_config.json"
            )
        output = self._unet(z_t.to(self._unet.dtype), self._shown(t), embeddings.to(self._unet.dtype)).sample
        return self._predicts.to_x0(self._process, z_t, output.to(z_t.dtype), t)

    def denoise(self, z_t: Tensor, t: Tensor, context: Context, class_labels: Tensor | None = None) -> Tensor:
        """As :meth:`predict_eps`, but differentiable; ``class_labels`` are for a UNet with a class embedding."""
        z_t, t, embeddings = self._of_process(z_t, t, context)
        dtype = self._unet.dtype
        output = self._unet(z_t.to(dtype), self._shown(t), embeddings.to(dtype), class_labels).sample
        return self._predicts.to_eps(self._process, z_t, output.to(z_t.dtype), t)

    def _of_process(self, z_t: Tensor, t: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Latents and times of the UNet's own process, of equal SNR and with the same noise; the embeddings."""
        embeddings = context.tensors["embeddings"]
        if self._schedule is self._process:
            return z_t, move(t, z_t.device), embeddings
        alpha, sigma = self._schedule.alpha_sigma(t, z_t)
        step = self._schedule.timestep(t)
        return z_t / (alpha.square() + sigma.square()).sqrt(), move(self._process.time(step), z_t.device), embeddings

    def _shown(self, t: Tensor) -> Tensor:
        """Times as the UNet reads them: timesteps, of a rectified flow 1000 t."""
        return 1000 * t if self._prediction_type == "flow" else t

    def _is_unknown(self, character: str) -> bool:
        return self._tokenizer.unk_token_id in self._tokenizer(character).input_ids[1:-1]

    @property
    def _shift(self) -> float:
        return self._vae.config.shift_factor or 0.0


def _encode(vae: AutoencoderKL | AutoencoderTiny, image: Tensor) -> Tensor:
    encoded = vae.encode(image)
    latent: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
    return latent


def _new_like(network: ModelMixin) -> ModelMixin:
    """A network of the same class and configuration, newly initialised."""
    # AutoencoderTiny's configuration has entries that its constructor does not take, and diffusers warns of them.
    accepted = inspect.signature(type(network).__init__).parameters
    return type(network).from_config({name: value for name, value in network.config.items() if name in accepted})


def placed(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL | AutoencoderTiny,
    text_encoder: CLIPTextModel,
    device: torch.device | str,
) -> tuple[UNet2DConditionModel, AutoencoderKL | AutoencoderTiny, CLIPTextModel]:
    """The networks on ``device``, with weights in the memory layout that is fastest there."""
    vae = vae.to(memory_format=torch.channels_last)
    if torch.device(device).type == "cuda":  # on a CPU only the autoencoder is faster
        unet = unet.to(memory_format=torch.channels_last)
    return unet.to(device), vae.to(device), text_encoder.to(device)  # type: ignore[arg-type]


def _checkpointed(function: Callable[..., Result], *arguments: object) -> Result:
    """The function's result; its activations are recomputed in the backward pass."""
    # The networks draw no random numbers: there is no state to preserve.
    return torch.utils.checkpoint.checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def _check_parts(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL | AutoencoderTiny,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    prediction_type: str,
) -> None:
    if prediction_type not in PARAMETRIZATIONS:
        raise InputError(
            f"prior.model: prediction type {prediction_type!r} is not one of {', '.join(PARAMETRIZATIONS)}"
        )
    check_vocabulary(len(tokenizer), text_encoder.config.vocab_size)
    check_fit(unet.config, vae.config, text_encoder.config.to_dict())


def _shortened(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
