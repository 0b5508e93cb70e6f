"""One optimisation step of score distillation: render, encode, predict the noise, form the gradient, inject it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nfsd3d.callbacks.events import StepTensors, detached
from nfsd3d.distill.gradient import inject_gradient, predict_noise, weight
from nfsd3d.distill.methods import Method
from nfsd3d.distill.settings import DistillSettings
from nfsd3d.generators.base import Generator, ImageGenerator, Images, Latents, Rendering, RenderOptions
from nfsd3d.prior.base import CountedPrior, Prior
from nfsd3d.prior.chunked import in_chunks
from nfsd3d.prior.lora import LoraNetwork
from nfsd3d.settings.cameras import CameraRanges
from nfsd3d.settings.schedules import value_at
from nfsd3d.train.plan import StepPlan
from nfsd3d.train.ranks import ALONE, Ranks
from nfsd3d.train.regularizers import penalty
from nfsd3d.views.cameras import Cameras, sample_cameras
from nfsd3d.views.prompts import PromptBank


@dataclass(frozen=True)
class Distillation:
    """A method with its settings, NFSD's threshold as a time of the prior, and VSD's LoRA network."""

    method: Method
    settings: DistillSettings
    threshold: float
    lora: LoraNetwork | None = None

    def scale(self, progress: float) -> float:
        """Guidance scale s at this fraction of training."""
        return value_at(self.settings.guidance_scale, progress) * value_at(self.settings.guidance_factor, progress)


@dataclass(frozen=True)
class StepMetrics:
    """Scalars that a step reports, on the generator's device; None where a step has no such number.

    ``grad_norm`` is the mean over views of the L2 norm of the gradient on the latent (of an oracle fit: on the image).
    Methods that read delta_C split it: ``grad_norm_delta_c`` is the norm of the condition part w s delta_C,
    ``grad_norm_rest`` that of the rest (delta_D for NFSD, eps_uncond - eps for SDS, 0 for CSD). A scene has
    ``opacity`` (mean over pixels) and ``samples_per_ray``, VSD ``lora_loss``, an oracle fit ``psnr`` (dB). The loop
    adds ``grad_norm_parameters``, the norm of the gradient on the generator's parameters before it is clipped.
    """

    grad_norm: Tensor
    grad_norm_delta_c: Tensor | None = None
    grad_norm_rest: Tensor | None = None
    psnr: Tensor | None = None
    opacity: Tensor | None = None
    samples_per_ray: Tensor | None = None
    lora_loss: Tensor | None = None
    grad_norm_parameters: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Those that the step has, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class StepResult:
    """A scalar ``loss`` to differentiate, the step's ``metrics``, its NFE (``evaluations``), and ``tensors``."""

    loss: Tensor
    metrics: StepMetrics
    evaluations: int = 0
    tensors: StepTensors | None = None


def step_loss(
    generator: Generator,
    prior: Prior,
    bank: PromptBank,
    distillation: Distillation,
    ranges: CameraRanges,
    plan: StepPlan,
    rng: torch.Generator,
    source: Generator | None = None,
    ranks: Ranks = ALONE,
) -> StepResult:
    """The loss of one step, without host-device synchronisation.

    Only the gradient of the loss has a meaning: w(t) times the method's direction, summed over the latent and averaged
    over the views, plus a scene's regularisers. An editing method needs the ``source``. It is rendered with the same
    cameras, background, light and sample positions as ``generator``, and gets the same noise. VSD's LoRA network gets
    the gradient of its own loss; the caller steps its optimiser. Every method draws the same amount from ``rng``, so
    that one seed gives all methods the same cameras, timesteps and noise. ``plan.chunks`` bounds the memory. Of several
    ``ranks`` each has the loss of its share of the views.
    """
    chunks, lora = plan.chunks, distillation.lora
    method = distillation.method.at(plan.progress)
    s = distillation.scale(plan.progress) if plan.guidance_scale is None else plan.guidance_scale
    if chunks.unet_batch_size is not None or chunks.checkpoint_encoder:
        prior = in_chunks(prior, chunks.unet_batch_size, chunks.checkpoint_encoder)
    prior = counted = CountedPrior(prior)

    # On the CPU: view words and Perp-Neg's weights depend on them, and would synchronise with a GPU.
    cameras = sample_cameras(rng, plan.views, plan.resolution, ranges)
    background, replaced = draw_background(rng, plan.views, plan.random_background)
    shading = draw_shading(rng, plan.lambertian, plan.textureless, plan.normals)
    cameras, background, replaced = ranks.own(cameras), ranks.own(background), ranks.own(replaced)
    normals = plan.regularizers["orient"] > 0
    options = RenderOptions(
        background, replaced, shading, plan.ambient, normals=normals, rays_per_chunk=chunks.rays_per_chunk
    )
    same_positions = rng.clone_state()
    view = _rendered(generator, cameras, ranks.own_generator(rng), options, ranks)
    z = _encoded(prior, view)

    contexts = bank.contexts(cameras)
    t = ranks.own(prior.schedule.sample_times(rng, plan.views, plan.t_min, plan.t_max))
    own = ranks.own_generator(fork(rng))  # the noise, and what only some methods draw
    z_t, noise = method.noising(prior, z.detach(), t, contexts, own)
    source_z_t = None
    offset: Tensor | float = 0.0
    if source is not None:
        with torch.no_grad():
            same_rng, without_normals = ranks.own_generator(same_positions), replace(options, normals=False)
            source_z = _encoded(prior, _rendered(source, cameras, same_rng, without_normals, ranks))
        source_z_t = prior.schedule.add_noise(source_z, noise, t)
        if method.leaves_source:
            offset = value_at(distillation.settings.eta, plan.progress) * (z.detach() - source_z)
            z_t = z_t + prior.schedule.alpha_sigma(t, z)[1] * offset
    later = None
    if method.later is not None:
        t_later = method.later(prior.schedule, t, own)
        later = prior.schedule.add_noise(z.detach(), noise, t_later), t_later
    predictions = predict_noise(
        prior,
        z_t,
        t,
        contexts,
        method,
        noise=noise,
        threshold=distillation.threshold,
        source=source_z_t,
        lora=None if lora is None else lora.at(cameras, chunks.unet_batch_size),
        view_weights=bank.view_weights(cameras),
        later=later,
        offset=offset,
    )

    w = weight(distillation.settings.weighting, prior.schedule.alpha_bar(t), z)
    direction = method.function(predictions, s)
    grad = w * direction
    loss = inject_gradient(z, grad)

    delta_c = predictions.cond - predictions.uncond if {"cond", "uncond"} <= set(method.predictions) else None
    guidance = None if delta_c is None else w * s * delta_c
    scene = view if isinstance(view, Rendering) else None
    if scene is not None:
        loss = loss + penalty(scene, plan.regularizers, ranks.divisor)
        if scene.shape_penalty is not None:
            loss = loss + scene.shape_penalty
    lora_loss, evaluations = None, counted.evaluations
    if lora is not None:
        size = chunks.unet_batch_size
        lora_loss = lora.learn(z, contexts["plain"], cameras, own, step=False, unet_batch_size=size)
        evaluations += len(cameras) * (1 + method.needs_lora)  # learning; predicting
    metrics = StepMetrics(
        grad_norm=_norm(grad),
        grad_norm_delta_c=None if guidance is None else _norm(guidance),
        grad_norm_rest=None if guidance is None else _norm(grad - guidance),
        opacity=None if scene is None else scene.opacity.detach().mean(),
        samples_per_ray=None if scene is None else scene.samples_per_ray,
        lora_loss=lora_loss,
    )
    tensors = StepTensors(detached(view), z.detach(), z_t, t, predictions, s, w, direction, delta_c)
    return StepResult(loss, metrics, evaluations, tensors)


def fork(rng: torch.Generator) -> torch.Generator:
    """A new generator on the CPU, seeded by one draw from ``rng``; for draws whose number differs between runs.

    The state of ``rng`` does not depend on how much is drawn from the fork. So methods with the same seed get the same
    cameras, timesteps and noise (common random numbers). A checkpoint that keeps ``rng`` restores its forks too.
    """
    return torch.Generator().manual_seed(int(torch.randint(2**63 - 1, (), generator=rng)))


def draw_shading(rng: torch.Generator, lambertian: float, textureless: float, normals: float = 0.0) -> str:
    """The kind of ``SHADINGS`` of all views of a step.

    ``lambertian`` is the probability of shading with a light; among those, ``textureless`` that of a white surface and
    ``normals`` that of normals in place of light.
    """
    lit, kind = torch.rand(2, generator=rng).tolist()
    if lit >= lambertian:
        return "albedo"
    if kind < textureless:
        return "textureless"
    return "normals" if kind < textureless + normals else "lambertian"


def draw_background(rng: torch.Generator, views: int, probability: float) -> tuple[Tensor, Tensor]:
    """[views,3] a random colour per view, uniform in [0,1]; [views] (bool) the views that have it as background.

    The other views keep the generator's own background.
    """
    # Stratified: one uniform number, spread evenly over the views. Probability 0.5 means half of every batch.
    uniform = (torch.rand((), generator=rng) + torch.arange(views) / views) % 1
    return torch.rand(views, 3, generator=rng), uniform < probability


def _rendered(
    generator: Generator, cameras: Cameras, rng: torch.Generator, options: RenderOptions, ranks: Ranks
) -> Images | Latents:
    """This rank's views: of a batch of images its share, which no camera chooses."""
    if ranks.alone or not isinstance(generator, ImageGenerator):
        return generator.render(cameras, rng, options)
    shown = generator.show()
    return Latents(ranks.own(shown.latent)) if isinstance(shown, Latents) else Images(ranks.own(shown.image))


def _encoded(prior: Prior, view: Images | Latents) -> Tensor:
    return view.latent if isinstance(view, Latents) else prior.encode(view.image)


def _norm(grad: Tensor) -> Tensor:
    return grad.flatten(1).norm(dim=1).mean()
