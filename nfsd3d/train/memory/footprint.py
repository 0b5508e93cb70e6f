"""The memory of a step: networks are traced on PyTorch's meta device, rendering is measured on a few pixels."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from nfsd3d.generators.base import RenderOptions
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.prior.chunked import in_chunks
from nfsd3d.prior.diffusers_prior import DiffusersPrior
from nfsd3d.prior.lora import LoraNetwork
from nfsd3d.settings.cameras import CameraRanges
from nfsd3d.train.memory.chunking import ChunkSizes
from nfsd3d.train.memory.tensor_memory import count_bytes
from nfsd3d.views.cameras import orbit

PROBES = (4, 8)
"""Sides in pixels of the two views whose difference gives the bytes of a sample."""


class SampleBytes(NamedTuple):
    """Bytes of one sample along a ray: of its ``packed`` position on the ray, ``kept`` also for the backward pass,
    and also at the ``peak`` of rendering and backward pass.
    """

    packed: float
    kept: float
    peak: float


def samples_at_most(nerf: NeRF, views: int, resolution: int) -> int:
    """Samples of all views of a step if every ray crosses the whole cube, up to ``generator.max_samples``."""
    return min(nerf.settings.max_samples, views * resolution**2 * nerf.settings.samples_per_ray)


def sample_bytes(nerf: NeRF, ranges: CameraRanges, *, normals: bool) -> SampleBytes:
    """The bytes of a sample, measured on two small views; memory that does not depend on their size cancels.

    All cells are marked as occupied for the measurement, and nothing of them is known that would prune samples, because
    a nearly empty scene has too few.
    """
    occupied, density = nerf.occupancy.occupied, nerf.occupancy.density
    before = occupied.clone(), density.clone()
    occupied.fill_(True)
    density.zero_()
    try:
        (few, *small), (many, *large) = (_probe(nerf, ranges, size, normals) for size in PROBES)
    finally:
        occupied.copy_(before[0])
        density.copy_(before[1])
    return SampleBytes(*(max(b - a, 0) / max(many - few, 1) for a, b in zip(small, large, strict=True)))


def _probe(nerf: NeRF, ranges: CameraRanges, size: int, normals: bool) -> tuple[float, float, float, float]:
    """The number of samples of one view, and the three bytes of :class:`SampleBytes` for all of them together.

    The scene has no gradients afterwards.
    """
    cameras = orbit(1, size, distance=ranges.distance[0], fovy_deg=ranges.fovy_deg[1]).to(nerf.device)
    known, rays = [*nerf.parameters(), *nerf.buffers()], cameras.rays()
    with count_bytes([*known, rays.origins, rays.directions]) as counter:
        samples = nerf.sample(rays)
        packed = counter.live()
        del samples
    nerf.zero_grad()
    with count_bytes(known) as counter:
        # They live on until the backward pass, as in a view in chunks, which all refer to them: not every backend
        # keeps them itself.
        samples = nerf.sample(cameras.rays(), encoded=True)
        options = RenderOptions(shading="lambertian" if normals else "albedo")
        view = nerf.render_samples(cameras, samples, options)
        samples = replace(samples, encoded=None)
        kept = counter.live()
        (view.image.sum() + view.opacity.sum() + view.depth_variance.sum()).backward()
        # The parameters' gradients do not depend on the samples; they are counted with the scene.
        peak = counter.peak(without=[value.grad for value in nerf.parameters() if value.grad is not None])
    nerf.zero_grad()
    return float(view.samples_per_ray) * size**2, packed, kept - packed, peak - packed


def network_peak(
    prior: DiffusersPrior,
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
    most, on_meta = max(entries, views), partial(torch.empty, device="meta")
    image = on_meta(views, 3, prior.image_size, prior.image_size, requires_grad=True)
    z_t, context = on_meta(most, *prior.latent_shape), prior.blank_context(most)
    t = prior.schedule.time(torch.zeros(most, dtype=torch.int64))
    with count_bytes([*prior.tensors(), image, z_t, t, *context.tensors.values()]) as counter:
        with torch.set_grad_enabled(gradient):
            z = split.encode(image) if encodes else z_t[:views]
        if entries:
            split.predict_eps(z_t[:entries], t[:entries], context[:entries])
        if lora is not None:
            cameras, rng = orbit(views, prior.image_size), torch.Generator()
            lora.learn(z, context[:views], cameras, rng, step=False, unet_batch_size=chunks.unet_batch_size)
        if encodes and gradient:
            z.sum().backward()
    return counter.peak()
