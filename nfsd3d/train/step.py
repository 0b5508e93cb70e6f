"""One optimisation step, on one screen: render, encode, predict the noise, turn it into a gradient, inject it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nfsd3d.cameras import CameraRanges, sample_cameras
from nfsd3d.distill.gradient import inject_gradient, predict_noise, weight
from nfsd3d.distill.methods import Method
from nfsd3d.generator import Generator, Images, Latents, Rendering
from nfsd3d.prior import Prior
from nfsd3d.prompts import PromptBank
from nfsd3d.train.plan import StepPlan, draw_background, draw_shading
from nfsd3d.train.regularizers import penalty


@dataclass(frozen=True)
class Distillation:
    """A method, its guidance scale s, the name of its weighting w(t), and NFSD's threshold (a timestep)."""

    method: Method
    guidance_scale: float
    weighting: str
    threshold: int


def step_loss(
    generator: Generator,
    prior: Prior,
    bank: PromptBank,
    distillation: Distillation,
    ranges: CameraRanges,
    plan: StepPlan,
    rng: torch.Generator,
    source: Generator | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A scalar whose gradient is the step's, and metrics (scalars on the generator's device, no synchronisation).

    The scalar's value means nothing; its gradient is w(t) times the method's direction, summed over the latent and
    averaged over the views, plus the regularisers. Metrics: ``grad_norm``, the mean over views of the L2 norm of the
    gradient on the latent; ``grad_norm_delta_c``, that of its condition part w s delta_C; ``grad_norm_rest``, that of
    what is left (delta_D for NFSD, eps_uncond - eps for SDS, 0 for CSD); of a scene also ``opacity`` and
    ``samples_per_ray``.

    A method that edits needs the ``source``, which is seen as ``generator`` is: by the same cameras, before the same
    background, in the same light, sampled at the same points; and the same noise is added.
    """
    cameras = sample_cameras(rng, plan.views, plan.resolution, ranges).to(prior.device)
    background, replaced = draw_background(rng, plan.views, plan.random_background)
    shading = draw_shading(rng, plan.lambertian, plan.textureless)
    look: dict[str, Any] = dict(background=background, replaced=replaced, shading=shading, ambient=plan.ambient)
    same_points = rng.clone_state()
    view = generator.render(cameras, rng, **look, normals=plan.regularizers["orient"] > 0)
    z = _latent(prior, view)

    t = prior.schedule.sample_timesteps(rng, plan.views, plan.t_min, plan.t_max)
    noise = torch.randn(z.shape, generator=rng).to(z.device)
    z_t = prior.schedule.add_noise(z.detach(), noise, t)
    source_z_t = None
    if source is not None:
        with torch.no_grad():
            source_z = _latent(prior, source.render(cameras, same_points, **look))
        source_z_t = prior.schedule.add_noise(source_z, noise, t)
    predictions = predict_noise(
        prior,
        z_t,
        t,
        bank.contexts(cameras),
        distillation.method,
        noise=noise,
        threshold=distillation.threshold,
        source_z_t=source_z_t,
    )

    w = weight(distillation.weighting, prior.schedule.alpha_bar(t), z)
    grad = w * distillation.method.function(predictions, distillation.guidance_scale)
    loss = inject_gradient(z, grad)

    condition = w * distillation.guidance_scale * (predictions.cond - predictions.uncond)
    metrics = {
        "grad_norm": _norm(grad),
        "grad_norm_delta_c": _norm(condition),
        "grad_norm_rest": _norm(grad - condition),
    }
    if isinstance(view, Rendering):
        loss = loss + penalty(view, plan.regularizers)
        metrics |= {"opacity": view.opacity.detach().mean(), "samples_per_ray": view.samples_per_ray}
    return loss, metrics


def _latent(prior: Prior, view: Images | Latents) -> Tensor:
    return view.latent if isinstance(view, Latents) else prior.encode(view.image)


def _norm(grad: Tensor) -> Tensor:
    return grad.flatten(1).norm(dim=1).mean()
