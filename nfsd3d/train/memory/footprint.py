"""How much memory the parts of a step take, found out by running them: the prior's networks on the device that has
shapes and no memory, and a few pixels of the scene for real.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nfsd3d.cameras import orbit
from nfsd3d.distill.methods import Method
from nfsd3d.generators.base import Rendering
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.prior.chunked import in_chunks
from nfsd3d.prior.lora import LoraNetwork
from nfsd3d.prior.stable_diffusion import StableDiffusionPrior
from nfsd3d.settings.cameras import CameraRanges
from nfsd3d.train.memory.tensor_memory import LiveBytes

PROBES = (4, 8)
"""Pixels squared of the two views from which the bytes of a sample follow."""


@dataclass(frozen=True)
class SampleBytes:
    """What one sample along a ray takes: ``packed`` as a position on its ray, ``kept`` for the backward pass of the
    rendering, and at the ``peak`` of rendering and backward pass.
    """

    packed: float
    kept: float
    peak: float


def rows_at_most(method: Method, views: int, *, perp_neg: bool) -> int:
    """How many rows the UNet is given in one call of a step: all branches in all rows."""
    branches = max(len(_of_prior(each)) for each in (method, method.then or method))
    pairs = len(method.condition_pairs) if perp_neg else 0
    return views * (branches + 2 * pairs)


def _of_prior(method: Method) -> list[str]:
    return [branch for branch in method.branches if branch != "lora"]


def samples_at_most(nerf: NeRF, views: int, resolution: int) -> int:
    """Samples of all views of a step, however full the scene: every ray all through the cube, up to the cap."""
    return min(nerf.settings.max_samples, views * resolution**2 * nerf.settings.samples_per_ray)


def sample_bytes(nerf: NeRF, ranges: CameraRanges, *, normals: bool) -> SampleBytes:
    """Measured on two small views, so that what does not go with the samples falls out.

    Every cell is occupied meanwhile: a scene that is mostly empty has too few samples to divide by.
    """
    occupied = nerf.occupancy.occupied
    before = occupied.clone()
    occupied.fill_(True)
    try:
        measured = [_probe(nerf, ranges, size, normals) for size in PROBES]
    finally:
        occupied.copy_(before)
    (few, *small), (many, *large) = measured
    packed, kept, peak = (max(b - a, 0) / max(many - few, 1) for a, b in zip(small, large, strict=True))
    return SampleBytes(packed, kept, peak)


def _probe(nerf: NeRF, ranges: CameraRanges, size: int, normals: bool) -> tuple[float, float, float, float]:
    """The samples of one view, and the bytes of their places, those kept for the backward pass, and the most of all."""
    cameras = orbit(1, size, distance=ranges.distance[0], fovy_deg=ranges.fovy_deg[1]).to(nerf.device)
    before = [(value, value.grad) for value in nerf.parameters()]
    for value, _ in before:
        value.grad = None
    known = [*nerf.parameters(), *nerf.buffers()]
    rays = cameras.rays()
    with LiveBytes([*known, rays.origins, rays.directions]) as counter:
        samples = nerf.sample(rays, None)
        packed = counter.live
        del samples
    with LiveBytes(known) as counter:
        view = nerf.render(cameras, shading="lambertian" if normals else "albedo")
        count = float(view.samples_per_ray) * size**2
        kept = counter.live
        _loss(view).backward()
        # Gradients of the parameters do not go with the samples; they are counted with the scene.
        peak = counter.peak_without([value.grad for value, _ in before if value.grad is not None])
    for value, grad in before:
        value.grad = grad
    return count, packed, kept - packed, peak - packed


def _loss(view: Rendering) -> Tensor:
    return view.image.sum() + view.opacity.sum() + view.depth_variance.sum()


def network_peak(
    prior: StableDiffusionPrior,
    unet_batch_size: int | None,
    checkpoint: bool,
    views: int,
    rows: int,
    lora: LoraNetwork | None = None,
    *,
    encodes: bool = True,
) -> int:
    """Bytes of the activations of encoder and UNet at their largest, found out with a prior without weights.

    Of a step whose UNet sees ``rows`` (0: it is not counted), and whose second network (of the same prior), if any,
    learns from ``views``. The encoder counts if the step ``encodes`` by these means.
    """
    split = in_chunks(prior, unet_batch_size, checkpoint)
    image = torch.empty(views, 3, prior.image_size, prior.image_size, device="meta", requires_grad=True)
    inputs = _unet_inputs(prior, max(rows, views))
    with LiveBytes([*prior.tensors(), image, *inputs]) as counter:
        z = split.encode(image) if encodes else inputs[0][:views]
        if rows:
            split.predict_eps(*(value[:rows] for value in inputs))
        if lora is not None:
            cameras, rng = orbit(views, prior.image_size), torch.Generator()
            lora.learn(z, inputs[2][:views], cameras, rng, step=False, unet_batch_size=unet_batch_size)
        if encodes:
            z.sum().backward()
    return counter.peak


def unet_peak(prior: StableDiffusionPrior, unet_batch_size: int | None, rows: int) -> int:
    """Bytes of the activations of the UNet alone, likewise."""
    inputs = _unet_inputs(prior, rows)
    with LiveBytes([*prior.tensors(), *inputs]) as counter:
        in_chunks(prior, unet_batch_size, False).predict_eps(*inputs)
    return counter.peak


def encoder_peak(prior: StableDiffusionPrior, views: int, *, without_gradient: bool) -> int:
    """Bytes of the activations of the encoder alone, forward and backward; ``without_gradient`` forward alone."""
    image = torch.empty(views, 3, prior.image_size, prior.image_size, device="meta", requires_grad=True)
    with LiveBytes([*prior.tensors(), image]) as counter, torch.set_grad_enabled(not without_gradient):
        z = prior.encode(image)
        if not without_gradient:
            z.sum().backward()
    return counter.peak


def _unet_inputs(prior: StableDiffusionPrior, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noised latents, timesteps and contexts of so many rows, without memory."""
    return (
        torch.empty(rows, *prior.latent_shape, device="meta"),
        torch.zeros(rows, dtype=torch.int64),
        torch.empty(rows, *prior.context_shape, device="meta"),
    )
