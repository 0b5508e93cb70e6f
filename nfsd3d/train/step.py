"""One optimisation step, on one screen: render, encode, predict the noise, turn it into a gradient, inject it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nfsd3d.cameras import CameraRanges, Cameras, sample_cameras
from nfsd3d.distill.gradient import inject_gradient, predict_noise, weight
from nfsd3d.distill.methods import Method
from nfsd3d.generator import Generator
from nfsd3d.prior import Prior
from nfsd3d.prior.noise import NOISINGS
from nfsd3d.prior.particle import Particle
from nfsd3d.prompts import PromptBank
from nfsd3d.schedules import Schedule, value_at
from nfsd3d.train.plan import StepPlan, draw_background, draw_shading
from nfsd3d.train.regularizers import penalty


@dataclass(frozen=True)
class Distillation:
    """A method, its guidance scale s over training, the name of its weighting w(t), NFSD's threshold (a timestep).

    ``particle`` is VSD's second network.
    """

    method: Method
    guidance_scale: Schedule
    weighting: str
    threshold: int
    particle: Particle | None = None


def step_loss(
    generator: Generator,
    prior: Prior,
    bank: PromptBank,
    distillation: Distillation,
    ranges: CameraRanges,
    plan: StepPlan,
    rng: torch.Generator,
    source: Callable[[Cameras], Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A scalar whose gradient is the step's, and metrics (scalars on the generator's device, no synchronisation).

    The scalar's value means nothing; its gradient is w(t) times the method's direction, summed over the latent and
    averaged over the views, plus the regularisers. ``source`` gives the images [B,3,H,W] of an edit's source for the
    step's cameras. VSD's second network is trained one step on what was rendered.

    Metrics: ``grad_norm``, the mean over views of the L2 norm of the gradient on the latent; where the method reads
    delta_C, ``grad_norm_delta_c``, that of its condition part w s delta_C, and ``grad_norm_rest``, that of what is left
    (delta_D for NFSD, eps_uncond - eps for SDS, 0 for CSD); ``opacity``; ``samples_per_ray``; and ``particle_loss``,
    the second network's, with VSD.
    """
    cameras = sample_cameras(rng, plan.views, plan.resolution, ranges).to(prior.device)
    background, replaced = draw_background(rng, plan.views, plan.random_background)
    rendering = generator.render(
        cameras,
        rng,
        background=background,
        replaced=replaced,
        shading=draw_shading(rng, plan.lambertian, plan.textureless),
        ambient=plan.ambient,
        normals=plan.regularizers["orient"] > 0,
    )
    z = prior.encode(rendering.image)

    method, s = distillation.method.at(plan.progress), value_at(distillation.guidance_scale, plan.progress)
    particle = distillation.particle
    contexts = bank.contexts(cameras)
    t = prior.schedule.sample_timesteps(rng, plan.views, plan.t_min, plan.t_max)
    z_t, noise = NOISINGS[method.noising](prior, z.detach(), t, contexts, rng)
    predictions = predict_noise(
        prior,
        z_t,
        t,
        contexts,
        method,
        noise=noise,
        threshold=distillation.threshold,
        source=None if source is None else _noised(prior, source(cameras), noise, t),
        particle=None if particle is None else particle.at(cameras),
        view_weights=bank.view_weights(cameras),
    )

    w = weight(distillation.weighting, prior.schedule.alpha_bar(t), z)
    grad = w * method.function(predictions, s)
    loss = inject_gradient(z, grad) + penalty(rendering, plan.regularizers)

    metrics = {
        "grad_norm": _norm(grad),
        "opacity": rendering.opacity.detach().mean(),
        "samples_per_ray": rendering.samples_per_ray,
    }
    if {"cond", "uncond"} <= set(method.branches):
        condition = w * s * (predictions.cond - predictions.uncond)
        metrics |= {"grad_norm_delta_c": _norm(condition), "grad_norm_rest": _norm(grad - condition)}
    if particle is not None:
        metrics["particle_loss"] = particle.learn(z, contexts["plain"], cameras, rng)
    return loss, metrics


@torch.no_grad()
def _noised(prior: Prior, image: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    return prior.schedule.add_noise(prior.encode(image), noise, t)


def _norm(grad: Tensor) -> Tensor:
    return grad.flatten(1).norm(dim=1).mean()
