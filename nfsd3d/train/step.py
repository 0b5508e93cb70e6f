"""One optimisation step, on one screen: render, encode, predict the noise, turn it into a gradient, inject it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nfsd3d.cameras import sample_cameras
from nfsd3d.distill.gradient import inject_gradient, predict_noise, weight
from nfsd3d.distill.methods import Method
from nfsd3d.distill.settings import DistillSettings
from nfsd3d.generators.base import Generator, Images, Latents, Rendering
from nfsd3d.prior.base import Prior
from nfsd3d.prior.chunked import in_chunks
from nfsd3d.prior.lora import LoraNetwork
from nfsd3d.prior.schedule import NOISINGS
from nfsd3d.prompts import PromptBank
from nfsd3d.settings.cameras import CameraRanges
from nfsd3d.settings.schedules import value_at
from nfsd3d.train.plan import StepPlan, draw_background, draw_shading
from nfsd3d.train.regularizers import penalty
from nfsd3d.train.rng import fork


@dataclass(frozen=True)
class Distillation:
    """A method with its settings, NFSD's threshold as a timestep of the prior, and VSD's LoRA network."""

    method: Method
    settings: DistillSettings
    threshold: int
    lora: LoraNetwork | None = None

    def scale(self, progress: float) -> float:
        """Guidance scale s at this fraction of training."""
        return value_at(self.settings.guidance_scale, progress) * value_at(self.settings.guidance_factor, progress)


def step_loss(
    generator: Generator,
    prior: Prior,
    bank: PromptBank,
    distillation: Distillation,
    ranges: CameraRanges,
    plan: StepPlan,
    rng: torch.Generator,
    source: Generator | None = None,
    step_lora: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A scalar whose gradient is the step's, and metrics (scalars on the generator's device, no synchronisation).

    The scalar's value means nothing; its gradient is w(t) times the method's direction, summed over the latent and
    averaged over the views, plus a scene's regularisers. A method that edits needs the ``source``, which is seen as
    ``generator`` is: by the same cameras, before the same background, in the same light, sampled at the same points;
    and the same noise is added. VSD's second network is trained one step on what was rendered; without
    ``step_lora`` that leaves it with the gradient, and its optimiser's step is the caller's. Every method takes as
    much from ``rng``, so that with one seed all of them see the same cameras, timesteps and noise. ``plan.chunks``
    bounds what is computed at once.

    Metrics: ``grad_norm``, the mean over views of the L2 norm of the gradient on the latent; where the method reads
    delta_C, ``grad_norm_delta_c``, that of its condition part w s delta_C, and ``grad_norm_rest``, that of what is left
    (delta_D for NFSD, eps_uncond - eps for SDS, 0 for CSD); of a scene also ``opacity`` and ``samples_per_ray``; with
    VSD ``lora_loss``, the second network's.
    """
    prior = in_chunks(prior, plan.chunks.unet_batch_size, plan.chunks.checkpoint_encoder)
    # Cameras stay on the CPU, where what follows from them (view words, Perp-Neg's weights) waits for nobody.
    cameras = sample_cameras(rng, plan.views, plan.resolution, ranges)
    background, replaced = draw_background(rng, plan.views, plan.random_background)
    shading = draw_shading(rng, plan.lambertian, plan.textureless)
    look: dict[str, Any] = dict(background=background, replaced=replaced, shading=shading, ambient=plan.ambient)
    look["rays_per_chunk"] = plan.chunks.rays_per_chunk
    same_points = rng.clone_state()
    view = generator.render(cameras, rng, **look, normals=plan.regularizers["orient"] > 0)
    z = _latent(prior, view)

    method, s = distillation.method.at(plan.progress), distillation.scale(plan.progress)
    lora = distillation.lora
    contexts = bank.contexts(cameras)
    t = prior.schedule.sample_timesteps(rng, plan.views, plan.t_min, plan.t_max)
    own = fork(rng)  # the noise, and what only some methods draw
    z_t, noise = NOISINGS[method.noising](prior, z.detach(), t, contexts, own)
    source_z_t = None
    if source is not None:
        with torch.no_grad():
            source_z = _latent(prior, source.render(cameras, same_points, **look))
        source_z_t = prior.schedule.add_noise(source_z, noise, t)
    predictions = predict_noise(
        prior,
        z_t,
        t,
        contexts,
        method,
        noise=noise,
        threshold=distillation.threshold,
        source=source_z_t,
        lora=None if lora is None else lora.at(cameras, plan.chunks.unet_batch_size),
        view_weights=bank.view_weights(cameras),
    )

    w = weight(distillation.settings.weighting, prior.schedule.alpha_bar(t), z)
    grad = w * method.function(predictions, s)
    loss = inject_gradient(z, grad)

    metrics = {"grad_norm": _norm(grad)}
    if {"cond", "uncond"} <= set(method.branches):
        condition = w * s * (predictions.cond - predictions.uncond)
        metrics |= {"grad_norm_delta_c": _norm(condition), "grad_norm_rest": _norm(grad - condition)}
    if isinstance(view, Rendering):
        loss = loss + penalty(view, plan.regularizers)
        metrics |= {"opacity": view.opacity.detach().mean(), "samples_per_ray": view.samples_per_ray}
    if lora is not None:
        metrics["lora_loss"] = lora.learn(
            z, contexts["plain"], cameras, own, step=step_lora, unet_batch_size=plan.chunks.unet_batch_size
        )
    return loss, metrics


def _latent(prior: Prior, view: Images | Latents) -> Tensor:
    return view.latent if isinstance(view, Latents) else prior.encode(view.image)


def _norm(grad: Tensor) -> Tensor:
    return grad.flatten(1).norm(dim=1).mean()
