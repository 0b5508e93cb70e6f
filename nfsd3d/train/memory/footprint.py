"""The memory of a step: networks are traced on PyTorch's meta device, rendering is measured on a few pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nfsd3d.cameras import orbit
from nfsd3d.generators.base import Rendering, RenderOptions
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.prior.chunked import in_chunks
from nfsd3d.prior.lora import LoraNetwork
from nfsd3d.prior.stable_diffusion import StableDiffusionPrior
from nfsd3d.settings.cameras import CameraRanges
from nfsd3d.train.memory.chunking import ChunkSizes
from nfsd3d.train.memory.tensor_memory import LiveBytes

PROBES = (4, 8)
"""Sides in pixels of the two views whose difference gives the bytes of a sample."""


@dataclass(frozen=True)
class SampleBytes:
    """Bytes of one sample along a ray: of its ``packed`` position on the ray, additionally ``kept`` for the backward
    pass, and additionally at the ``peak`` of rendering and backward pass.
    """

    packed: float
    kept: float
    peak: float


def samples_at_most(nerf: NeRF, views: int, resolution: int) -> int:
    """Samples of all views of a step if every ray crosses the whole cube, up to ``generator.max_samples``."""
    return min(nerf.settings.max_samples, views * resolution**2 * nerf.settings.samples_per_ray)


def sample_bytes(nerf: NeRF, ranges: CameraRanges, *, normals: bool) -> SampleBytes:
    """The bytes of a sample, measured on two small views; memory that does not depend on their size cancels.

    All cells are marked as occupied for the measurement, because a nearly empty scene has too few samples.
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
    """The number of samples of one view, and the three bytes of :class:`SampleBytes` for all of them together."""
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
        view = nerf.render(cameras, options=RenderOptions(shading="lambertian" if normals else "albedo"))
        count = float(view.samples_per_ray) * size**2
        kept = counter.live
        _loss(view).backward()
        # The parameters' gradients do not depend on the samples; they are counted with the scene.
        peak = counter.peak_without([value.grad for value, _ in before if value.grad is not None])
    for value, grad in before:
        value.grad = grad
    return count, packed, kept - packed, peak - packed


def _loss(view: Rendering) -> Tensor:
    return view.image.sum() + view.opacity.sum() + view.depth_variance.sum()


def network_peak(
    prior: StableDiffusionPrior,
    chunks: ChunkSizes,
    views: int,
    entries: int,
    lora: LoraNetwork | None = None,
    *,
    encodes: bool = True,
    gradient: bool = True,
) -> int:
    """Bytes of the activations of encoder and UNet at their largest, from a trace on PyTorch's meta device.

    ``prior`` is without weights. The UNet predicts ``entries`` batch entries (0: none), and the LoRA network of the
    same prior, if any, learns from ``views``. Unless ``encodes`` is false the encoder encodes ``views`` images, and
    unless ``gradient`` is false it is differentiated.
    """
    split = in_chunks(prior, chunks.unet_batch_size, chunks.checkpoint_encoder)
    image = torch.empty(views, 3, prior.image_size, prior.image_size, device="meta", requires_grad=True)
    inputs = _unet_inputs(prior, max(entries, views))
    with LiveBytes([*prior.tensors(), image, *inputs]) as counter:
        with torch.set_grad_enabled(gradient):
            z = split.encode(image) if encodes else inputs[0][:views]
        if entries:
            split.predict_eps(*(value[:entries] for value in inputs))
        if lora is not None:
            cameras, rng = orbit(views, prior.image_size), torch.Generator()
            lora.learn(z, inputs[2][:views], cameras, rng, step=False, unet_batch_size=chunks.unet_batch_size)
        if encodes and gradient:
            z.sum().backward()
    return counter.peak


def _unet_inputs(prior: StableDiffusionPrior, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noised latents, timesteps and contexts of so many batch entries, on the meta device."""
    return (
        torch.empty(count, *prior.latent_shape, device="meta"),
        torch.zeros(count, dtype=torch.int64),
        torch.empty(count, *prior.context_shape, device="meta"),
    )
