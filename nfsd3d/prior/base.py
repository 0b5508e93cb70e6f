"""The prior: a pretrained latent diffusion model behind one protocol.

No code outside this package depends on the model. Importing it is cheap: torch and diffusers are imported by the
modules that need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from nfsd3d.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nfsd3d.context import Context
    from nfsd3d.prior.schedule import NoiseSchedule


class Prior(Protocol):
    """A text-conditioned diffusion model on latents [N,C,h,w].

    Latents are scaled as the denoiser expects them, and float32, whatever the precision of the networks.
    """

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule that the denoiser was trained with."""
        ...

    @property
    def image_size(self) -> int:
        """Side in pixels of the square images that the encoder reads and the decoder writes."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the networks and of their results."""
        ...

    def embed(self, prompts: list[str], negative: Sequence[bool] | None = None) -> Context:
        """What N prompts are for the denoiser, [N].

        ``negative`` marks those that guidance moves away from, which some families encode in another way; None: the
        empty ones.
        """
        ...

    def free_text_encoder(self) -> None:
        """Frees the text encoder's memory, if there is one; no prompt can be embedded afterwards."""
        ...

    def encode(self, image: Tensor, *, checkpoint: bool = False) -> Tensor:
        """[B,C,h,w] latents of images [B,3,H,W] in [0, 1], resized bilinearly first; differentiable, no sampling.

        With ``checkpoint`` the encoder's activations are recomputed in the backward pass instead of stored.
        """
        ...

    def decode(self, z: Tensor) -> Tensor:
        """[B,3,image_size,image_size] images in [0, 1] of latents [B,C,h,w]; no gradient."""
        ...

    def predict_eps(self, z_t: Tensor, t: Tensor, context: Context, *, at_most: int | None = None) -> Tensor:
        """[N,C,h,w] predicted noise at times ``t`` [N] of the schedule given ``context`` [N]; no gradient.

        A compiled denoiser that pads its batch uses at most ``at_most`` batch entries.
        """
        ...


@runtime_checkable
class PredictsX0(Protocol):
    """A prior that also predicts clean latents; needed only at times without signal (alpha = 0)."""

    def predict_x0(self, z_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """[N,C,h,w] predicted clean latents at times ``t`` [N] given ``context`` [N]; no gradient."""
        ...


def predict_x0(prior: Prior, z_t: Tensor, t: Tensor, context: Context) -> Tensor:
    """[N,C,h,w] clean latents that ``prior`` predicts; see :class:`PredictsX0`.

    Raises:
        InputError: it predicts noise only.
    """
    if not isinstance(prior, PredictsX0):
        raise InputError(
            "prior: its noise schedule ends without signal (alpha = 0), and it predicts noise, from which no image "
            "follows there; a model that predicts v or x0 can be sampled"
        )
    return prior.predict_x0(z_t, t, context)


class WrappedPrior:
    """A prior that delegates every call to another one; base class of decorators."""

    def __init__(self, prior: Prior) -> None:
        self._prior = prior

    @property
    def schedule(self) -> NoiseSchedule:
        """See :class:`Prior`, also for all other members."""
        return self._prior.schedule

    @property
    def image_size(self) -> int:
        """Side in pixels of the encoder's images."""
        return self._prior.image_size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        return self._prior.latent_shape

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return self._prior.device

    def embed(self, prompts: list[str], negative: Sequence[bool] | None = None) -> Context:
        """[N] what prompts are for the denoiser."""
        return self._prior.embed(prompts, negative)

    def free_text_encoder(self) -> None:
        """Frees the text encoder's memory."""
        self._prior.free_text_encoder()

    def encode(self, image: Tensor, *, checkpoint: bool = False) -> Tensor:
        """[B,C,h,w] latents of images [B,3,H,W]; differentiable."""
        return self._prior.encode(image, checkpoint=checkpoint)

    def decode(self, z: Tensor) -> Tensor:
        """[B,3,image_size,image_size] images of latents [B,C,h,w]; no gradient."""
        return self._prior.decode(z)

    def predict_eps(self, z_t: Tensor, t: Tensor, context: Context, *, at_most: int | None = None) -> Tensor:
        """[N,C,h,w] predicted noise; no gradient."""
        return self._prior.predict_eps(z_t, t, context, at_most=at_most)

    def predict_x0(self, z_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """[N,C,h,w] predicted clean latents; no gradient."""
        return predict_x0(self._prior, z_t, t, context)


class CountedPrior(WrappedPrior):
    """``prior`` with the NFE (number of function evaluations) of its denoiser: a call on N batch entries counts N."""

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        self.evaluations = 0

    def predict_eps(self, z_t: Tensor, t: Tensor, context: Context, *, at_most: int | None = None) -> Tensor:
        """[N,C,h,w] predicted noise; adds N to ``evaluations``."""
        self.evaluations += len(z_t)
        return super().predict_eps(z_t, t, context, at_most=at_most)

    def predict_x0(self, z_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """[N,C,h,w] predicted clean latents; adds N to ``evaluations``."""
        self.evaluations += len(z_t)
        return super().predict_x0(z_t, t, context)
