"""An analytic prior: the exact denoiser of a mixture of Gaussians on tiny images.

A perfectly trained denoiser would give the same predictions, so the theory of score distillation can be tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nfsd3d.context import Context
from nfsd3d.prior.schedule import NoiseSchedule


class AnalyticPrior:
    """Mixtures of isotropic Gaussians in latent space, one per prompt; implements :class:`nfsd3d.prior.base.Prior`.

    The latent of an image is the image itself, scaled to [-1, 1]. A prompt's embedding [1,K] holds the weights of the
    K components. Computes in the dtype of ``means``, so that identities can be checked in float64.
    """

    def __init__(self, means: Tensor, stds: Tensor, prompts: Mapping[str, Tensor], schedule: NoiseSchedule) -> None:
        """Mixtures of K shared components.

        Args:
            means: [K,3,n,n] the components' means.
            stds: [K] their standard deviations, the same in every direction.
            prompts: for every prompt, weights [K] of the components, non-negative, with sum 1.
            schedule: of the diffusion process.

        Raises:
            ValueError: shapes that do not fit, or weights that are no distribution.
        """
        count = means.shape[0]
        if means.ndim != 4 or means.shape[1] != 3 or means.shape[2] != means.shape[3] or stds.shape != (count,):
            raise ValueError(f"means {tuple(means.shape)} and stds {tuple(stds.shape)} must be [K,3,n,n] and [K]")
        for prompt, weights in prompts.items():
            if weights.shape != (count,) or weights.min() < 0 or not torch.isclose(weights.sum(), weights.new_ones(())):
                raise ValueError(f"prompt {prompt!r}: weights {weights.tolist()} are no distribution over {count}")
        self._means = means
        self._stds = stds
        self._prompts = {prompt: weights.to(means) for prompt, weights in prompts.items()}
        self._schedule = schedule.to(means.device)

    @property
    def schedule(self) -> NoiseSchedule:
        """The given noise schedule."""
        return self._schedule

    @property
    def image_size(self) -> int:
        """n, the side of the tiny images."""
        return self._means.shape[-1]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(3, n, n)."""
        return 3, self.image_size, self.image_size

    @property
    def device(self) -> torch.device:
        """The device of the means."""
        return self._means.device

    def embed(self, prompts: list[str], negative: Sequence[bool] | None = None) -> Context:
        """[N] with embeddings [N,1,K], the weights of each prompt's mixture.

        Raises:
            KeyError: a prompt that was not given weights.
        """
        return Context.of(torch.stack([self._prompts[prompt] for prompt in prompts])[:, None, :])

    def free_text_encoder(self) -> None:
        """Does nothing: there is no text encoder."""

    def encode(self, image: Tensor, *, checkpoint: bool = False) -> Tensor:
        """[B,3,n,n] in [-1, 1] of images [B,3,H,W] in [0, 1], resized bilinearly; differentiable."""
        size = self.image_size
        if image.shape[-2:] != (size, size):
            shrinks = max(image.shape[-2:]) > size
            image = F.interpolate(image, (size, size), mode="bilinear", align_corners=False, antialias=shrinks)
        return image * 2 - 1

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """[B,3,n,n] images in [0, 1]."""
        return (z / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def predict_eps(self, z_t: Tensor, t: Tensor, context: Context, *, at_most: int | None = None) -> Tensor:
        """[N,3,n,n] the expected noise E[eps | z_t], which is -sigma times the score of p_t; exact.

        Component k of p_t is a Gaussian around alpha mu_k of variance alpha² s_k² + sigma².
        """
        alpha, sigma = self._schedule.alpha_sigma(t, z_t)
        variance = (alpha**2 * (self._stds**2)[None, :, None, None] + sigma**2)[..., 0, 0]  # [N,K]
        offset = z_t[:, None] - alpha[:, None] * self._means[None]  # [N,K,3,n,n]
        dimension = offset[0, 0].numel()
        log_density = -offset.square().sum((2, 3, 4)) / (2 * variance) - dimension / 2 * variance.log()
        posterior = (log_density + context.tensors["embeddings"][:, 0].log()).softmax(
            dim=1
        )  # [N,K] of the component, given z_t
        return sigma * torch.einsum("nk,nkchw->nchw", posterior / variance, offset)
