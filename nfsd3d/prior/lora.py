"""The second network of variational score distillation: what the rendered images look like to a diffusion model.

It is the prior's own UNet with a low-rank adaptation (LoRA, 2106.09685) and an embedding of the camera, both switched
on only while this network is meant, so that the base weights exist once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nfsd3d.cameras import Cameras
from nfsd3d.device import move
from nfsd3d.prior.chunked import parts
from nfsd3d.prior.stable_diffusion import StableDiffusionPrior

POSE = 16
"""Numbers that describe a camera to the network: its camera-to-world matrix."""


@dataclass(frozen=True)
class LoraForCameras:
    """The second network for one batch: ``poses`` [B,16] are those of the cameras that saw the latents.

    It sees ``unet_batch_size`` of them together, or all.
    """

    lora: "LoraNetwork"
    poses: Tensor
    unet_batch_size: int | None = None

    @torch.no_grad()
    def predict_eps(self, z_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """[B,C,h,w] predicted noise of the whole batch, as the prior's; no gradient."""
        rows = parts(len(z_t), self.unet_batch_size)
        return torch.cat([self.lora.denoise(z_t[i], t[i], context[i], self.poses[i]) for i in rows])


class LoraNetwork:
    """ε_LoRA of ProlificDreamer (2305.16213, algorithm 1): learns the images that the generator renders.

    Untrained it predicts what the prior predicts, exactly. Outside its own calls the prior is as it was, bit by bit:
    the adapters are off and the UNet has no class embedding. Trained numbers are float32 whatever the UNet's precision.
    """

    def __init__(
        self, prior: StableDiffusionPrior, *, rank: int, learning_rate: float, camera_dropout: float, seed: int
    ) -> None:
        """Adapts the prior's UNet.

        Args:
            prior: whose UNet is adapted; at most one lora for each prior.
            rank: of the adaptation of every attention projection.
            learning_rate: AdamW's, constant.
            camera_dropout: in training, the probability that a camera is hidden from the network.
            seed: of the initialisation.
        """
        from peft import LoraConfig
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._prior = prior
        self._camera_dropout = camera_dropout
        unet = prior.unet
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        width = unet.time_embedding.linear_2.out_features
        with torch.random.fork_rng(devices=[]):  # initialisation draws from the global generator
            torch.manual_seed(seed)
            unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets))
            last = nn.Linear(width, width)
            self._camera = nn.Sequential(nn.Linear(POSE, width), nn.SiLU(), last).to(unet.device)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self._layers = [module for module in unet.modules() if isinstance(module, BaseTunerLayer)]
        self._parameters = {name: value for name, value in unet.named_parameters() if ".lora_" in name}
        for value in self._parameters.values():
            value.data = value.data.float()  # half precision would round small steps to nothing
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
        """The network for the batch that ``cameras`` saw, in calls of at most ``unet_batch_size`` latents."""
        return LoraForCameras(self, move(_poses(cameras), self._prior.device), unet_batch_size)

    def learn(
        self,
        z: Tensor,
        context: Tensor,
        cameras: Cameras,
        rng: torch.Generator,
        *,
        step: bool = True,
        unet_batch_size: int | None = None,
    ) -> Tensor:
        """One training step on the latents [B,C,h,w] that ``cameras`` saw; returns its loss, a scalar.

        Without ``step`` it ends with the gradient, and the caller's ``optimizer.step()`` is what is missing. The
        gradient is summed up over ``unet_batch_size`` rows at a time.

        The loss is the mean squared error of the noise at timesteps uniform over the whole range, given the prompt's
        ``context`` [B,L,D] without view words: the camera tells the view. Timesteps, noise and which cameras are hidden
        come from ``rng``, on the CPU.
        """
        z = z.detach()
        schedule = self._prior.schedule
        t = schedule.sample_timesteps(rng, len(z), 0.0, 1.0)
        noise = move(torch.randn(z.shape, generator=rng), z.device)
        shown = move(torch.rand(len(z), generator=rng) >= self._camera_dropout, z.device).to(z.dtype)
        with self._on():
            poses = move(_poses(cameras), z.device).to(z.dtype) * shown[:, None]
            z_t = schedule.add_noise(z, noise, t)
            self.optimizer.zero_grad(set_to_none=True)
            losses = []
            for rows in parts(len(z), unet_batch_size):
                eps = self._prior.denoise(z_t[rows], t[rows], context[rows], poses[rows])
                loss = (eps - noise[rows]).square().mean() * (len(eps) / len(z))
                loss.backward()
                losses.append(loss.detach())
        if step:
            self.optimizer.step()
        return torch.stack(losses).sum()

    def denoise(self, z_t: Tensor, t: Tensor, context: Tensor, poses: Tensor) -> Tensor:
        """[B,C,h,w] predicted noise, given also camera poses [B,16]."""
        with self._on():
            return self._prior.denoise(z_t, t, context, poses)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that is trained, by name."""
        return {name: value.detach() for name, value in self._parameters.items()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Restores what :meth:`state_dict` gave."""
        for name, value in self._parameters.items():
            value.copy_(state_dict[name])

    @contextmanager
    def _on(self) -> Iterator[None]:
        """Within the block, the prior's UNet is this network; backward passes belong in it too."""
        self._switch(True)
        try:
            yield
        finally:
            self._switch(False)

    def _switch(self, on: bool) -> None:
        for layer in self._layers:
            layer.enable_adapters(on)
        # Not a camera of zeros instead: its biases train, and the prior would drift with them.
        self._prior.unet.class_embedding = self._camera if on else None


def _poses(cameras: Cameras) -> Tensor:
    """[B,16] flattened camera-to-world matrices."""
    return cameras.camera_to_world.flatten(1)
