"""The LoRA score network of variational score distillation: a diffusion model of the rendered images.

It is the prior's UNet with a low-rank adaptation (LoRA, 2106.09685) and a camera embedding. Both are enabled only
during calls of this network, so that the base weights exist once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nfsd3d.device import move
from nfsd3d.prior.chunked import slices
from nfsd3d.prior.diffusers_prior import DiffusersPrior
from nfsd3d.shared_batch import draw

if TYPE_CHECKING:
    from nfsd3d.context import Context
    from nfsd3d.views.cameras import Cameras

POSE = 16
"""Entries of a camera pose, the camera-to-world matrix."""


@dataclass(frozen=True)
class LoraForCameras:
    """The LoRA network for one batch of latents, rendered from cameras with ``poses`` [B,16].

    A call of the UNet has at most ``unet_batch_size`` batch entries; None: all.
    """

    lora: LoraNetwork
    poses: Tensor
    unet_batch_size: int | None = None

    @torch.no_grad()
    def predict_eps(self, z_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """[B,C,h,w] predicted noise of the whole batch, as the prior's; no gradient."""
        chunks = slices(len(z_t), self.unet_batch_size)
        return torch.cat([self.lora.denoise(z_t[i], t[i], context[i], self.poses[i]) for i in chunks])


class LoraNetwork:
    """ε_LoRA of ProlificDreamer (2305.16213, algorithm 1): learns the images that the generator renders.

    Untrained, its predictions equal the prior's exactly. Outside its own calls the prior is unchanged, bit for bit: the
    adapters are off and the UNet has no class embedding. Trained parameters are float32 also
    where the UNet is in half precision.
    """

    def __init__(
        self, prior: DiffusersPrior, *, rank: int, learning_rate: float, camera_dropout: float, seed: int
    ) -> None:
        """Adapts the prior's UNet.

        Args:
            prior: the prior with the UNet to adapt; at most one LoRA network for each prior.
            rank: rank of the adaptation of every attention projection.
            learning_rate: AdamW's learning rate, constant.
            camera_dropout: probability that a training step omits the camera condition.
            seed: seed of the initialisation.
        """
        from peft import LoraConfig
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._prior = prior
        self._camera_dropout = camera_dropout
        unet = prior.denoiser
        # In half precision small steps would round to zero.
        self._precision = precision = torch.promote_types(unet.dtype, torch.float32)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        width = unet.time_embedding.linear_2.out_features
        with torch.random.fork_rng(devices=[]):  # initialisation draws from the global generator
            torch.manual_seed(seed)
            unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets))
            last = nn.Linear(width, width)
            self._camera = nn.Sequential(nn.Linear(POSE, width), nn.SiLU(), last).to(unet.device, precision)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self._layers = [module for module in unet.modules() if isinstance(module, BaseTunerLayer)]
        self._parameters = {name: value for name, value in unet.named_parameters() if ".lora_" in name}
        for value in self._parameters.values():
            value.data = value.data.to(precision)
        self._parameters |= {f"camera.{name}": value for name, value in self._camera.named_parameters()}
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            self._parameters.values(),
            learning_rate,
            (0.9, 0.99),
            weight_decay=0.0,
            fused=unet.device.type == "cuda" or None,
        )
        self._switch(False)

    def at(self, cameras: Cameras, unet_batch_size: int | None = None) -> LoraForCameras:
        """The network for a batch rendered from ``cameras``, in calls of at most ``unet_batch_size`` entries."""
        return LoraForCameras(self, move(_poses(cameras), self._prior.device), unet_batch_size)

    def learn(
        self,
        z: Tensor,
        context: Context,
        cameras: Cameras,
        rng: torch.Generator,
        *,
        step: bool = True,
        unet_batch_size: int | None = None,
    ) -> Tensor:
        """One training step on latents [B,C,h,w] rendered from ``cameras``; returns its loss, a scalar.

        Without ``step`` only the gradient is computed, and the caller runs ``optimizer.step()``. Gradients are
        accumulated over chunks of ``unet_batch_size`` batch entries.

        The loss is the mean squared error of the noise at timesteps uniform over the whole range. ``context`` [B]
        is that of the prompt without view words, because the camera pose gives the view. Timesteps, noise and camera
        dropout are drawn from ``rng``, on the CPU.
        """
        z = z.detach()
        schedule = self._prior.schedule
        t = schedule.sample_times(rng, len(z), 0.0, 1.0)
        noise = move(draw(torch.randn, z.shape, rng), z.device)
        shown = move(draw(torch.rand, (len(z),), rng) >= self._camera_dropout, z.device).to(self._precision)
        with self._on():
            poses = move(_poses(cameras), z.device).to(self._precision) * shown[:, None]
            z_t = schedule.add_noise(z, noise, t)
            self.optimizer.zero_grad(set_to_none=True)
            losses = []
            for chunk in slices(len(z), unet_batch_size):
                eps = self._prior.denoise(z_t[chunk], t[chunk], context[chunk], poses[chunk])
                loss = (eps - noise[chunk]).square().mean() * (len(eps) / len(z))
                loss.backward()
                losses.append(loss.detach())
        if step:
            self.optimizer.step()
        return torch.stack(losses).sum()

    def denoise(self, z_t: Tensor, t: Tensor, context: Context, poses: Tensor) -> Tensor:
        """[B,C,h,w] predicted noise given camera poses [B,16] too."""
        with self._on():
            return self._prior.denoise(z_t, t, context, poses.to(self._precision))

    def state_dict(self) -> dict[str, Tensor]:
        """The trained parameters by name."""
        return {name: value.detach() for name, value in self._parameters.items()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Restores the parameters of :meth:`state_dict`."""
        for name, value in self._parameters.items():
            value.copy_(state_dict[name])

    @contextmanager
    def _on(self) -> Iterator[None]:
        """Within the block the prior's UNet is this network; backward passes belong in the block too."""
        self._switch(True)
        try:
            yield
        finally:
            self._switch(False)

    def _switch(self, on: bool) -> None:
        for layer in self._layers:
            layer.enable_adapters(on)
        # None rather than a pose of zeros: the embedding's biases are trained, and would change the prior.
        self._prior.denoiser.class_embedding = self._camera if on else None


def _poses(cameras: Cameras) -> Tensor:
    """[B,16] flattened camera-to-world matrices."""
    return cameras.camera_to_world.flatten(1)
