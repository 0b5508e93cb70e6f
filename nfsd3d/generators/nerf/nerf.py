"""A NeRF in a hash grid (Instant-NGP) as a generator: volume rendering of its views by ray marching.

Design note on chunked rendering. Problem: the backward pass needs every sample's activations, which exceed the memory
of a small GPU at 512 pixels. Idea: all rays are marched once, then composited ``rays_per_chunk`` at a time under
``torch.utils.checkpoint``, which recomputes each chunk in the backward pass and frees it before the next. Marching once
keeps random numbers and step length those of the undivided view, so image and gradient are equal up to floating-point
summation order. Measured: tests/generators/nerf/test_nerf.py holds that chunks of 100 of 1,152 rays keep less than a
tenth of the memory.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Parameter
from torch.utils.checkpoint import checkpoint

from nfsd3d.device import move
from nfsd3d.generators.base import DEFAULT_OPTIONS, Rendering, RenderOptions, SceneGenerator
from nfsd3d.generators.nerf.background import Background
from nfsd3d.generators.nerf.bundle import Bundle, chunks_of_rays
from nfsd3d.generators.nerf.compositing.compositing import accumulate, composite, contributes, render_weights
from nfsd3d.generators.nerf.field import POINTS_PER_CHUNK, FieldSample, HashGridField
from nfsd3d.generators.nerf.occupancy import OccupancyGrid
from nfsd3d.generators.nerf.sampling.sampling import RaySamples, sample_points, sample_rays, step_length
from nfsd3d.generators.nerf.settings import NeRFSettings
from nfsd3d.generators.nerf.shading import needs_normals, shade
from nfsd3d.views.cameras import Cameras, Rays

# Rays that are rendered together, without gradient.
RAYS_PER_CHUNK = 2**15
# Opacity below which a pixel has no depth.
SMALLEST_OPACITY = 1e-6
PLAIN_BACKGROUND = (1.0, 1.0, 1.0)
"""RGB in [0,1] behind the object with ``background="color"``."""


class NeRF(SceneGenerator):
    """The radiance field of one scene, as a generator."""

    def __init__(
        self,
        settings: NeRFSettings,
        *,
        field_backend: str = "torch",
        sampler_backend: str = "torch",
        tensor_cores: bool = False,
    ) -> None:
        """``tensor_cores``: the field's MLP may round its factors to TF32 (see ``HashGridField``).

        Raises InputError for a backend that is not installed.
        """
        super().__init__()
        self.settings = settings
        self.sampler_backend = sampler_backend
        self.step_size = step_length(settings.radius, settings.samples_per_ray)
        self.field = HashGridField(
            settings.encoding,
            field_backend,
            radius=settings.radius,
            hidden_width=settings.hidden_width,
            hidden_layers=settings.hidden_layers,
            blob_scale=settings.density_blob_scale,
            blob_std=settings.density_blob_std,
            tensor_cores=tensor_cores,
        )
        # Whether training takes over the encoding of the samples that pruning leaves.
        self.keeps_encodings = self.field.takes_encoded
        self.background = Background() if settings.background == "learned" else None
        self.occupancy = OccupancyGrid(
            settings.occupancy_resolution,
            settings.radius,
            step_size=self.step_size,
            alpha_threshold=settings.alpha_threshold,
            decay=settings.occupancy_decay,
            warmup=settings.occupancy_warmup,
        )

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.occupancy.density.device

    @property
    def radius(self) -> float:
        """Half-width in world units of the cube that holds the object."""
        return self.settings.radius

    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """Parameters by the name of their learning rate: "encoding", "network" and "background" (may be empty)."""
        return {
            "encoding": list(self.field.encoding.parameters()),
            "network": list(self.field.network.parameters()),
            "background": [] if self.background is None else list(self.background.parameters()),
        }

    def update(self, step: int, rng: torch.Generator) -> None:
        """Updates the occupancy grid every ``occupancy_interval`` steps (at step 0 too); ``rng`` is on the CPU."""
        if step % self.settings.occupancy_interval == 0:
            self.occupancy.update(self.density, step, rng)

    def render(
        self, cameras: Cameras, rng: torch.Generator | None = None, options: RenderOptions = DEFAULT_OPTIONS
    ) -> Rendering:
        """The view of each of the B cameras; differentiable.

        ``rng``, a generator on the CPU, jitters the samples along the rays; without it the view is deterministic.
        """
        inputs = cameras.azimuth, options.background, options.replaced
        with self.occupancy.side_stream.ahead(self.occupancy.occupied, *inputs) as keep:
            bundle = self._bundle(cameras, options)
            samples = self._march(bundle.rays, rng)
            keep([*bundle.tensors, *samples.tensors])
        samples = self._pruned(samples, bundle.rays, encoded=options.rays_per_chunk is None and torch.is_grad_enabled())
        return self._composited(cameras, bundle, samples, options)

    def render_samples(
        self, cameras: Cameras, samples: RaySamples, options: RenderOptions = DEFAULT_OPTIONS
    ) -> Rendering:
        """As :meth:`render`, with ``samples`` of all rays of the cameras, in their order.

        If they are encoded, then by the present parameters.
        """
        return self._composited(cameras, self._bundle(cameras, options), samples, options)

    def _composited(self, cameras: Cameras, bundle: Bundle, samples: RaySamples, options: RenderOptions) -> Rendering:
        chunks = list(chunks_of_rays(bundle, samples, options.rays_per_chunk))
        if len(chunks) == 1:
            return _images(self._composite(*chunks[0], options), cameras)
        channels = [
            # The forward pass draws no random numbers, so there is no state to preserve.
            checkpoint(self._composite, *chunk, options, use_reentrant=False, preserve_rng_state=False)
            for chunk in chunks
        ]
        return _images(_concatenated(channels), cameras)

    @torch.no_grad()
    def render_in_chunks(
        self,
        cameras: Cameras,
        options: RenderOptions = DEFAULT_OPTIONS,
        on_chunk: Callable[[], None] = lambda: None,
    ) -> Rendering:
        """``render`` of many or large views without gradient and jitter; each chunk of rays is marched on its own.

        ``on_chunk`` is called after each chunk; what it raises ends the rendering.
        """
        bundle, count = self._bundle(cameras, options), options.rays_per_chunk or RAYS_PER_CHUNK
        channels = []
        for first in range(0, len(bundle.rays), count):
            chunk = bundle.part(first, first + count)
            channels.append(self._composite(chunk, self.sample(chunk.rays), options))
            on_chunk()
        return _images(_concatenated(channels), cameras)

    @torch.no_grad()
    def density(self, positions: Tensor) -> Tensor:
        """[N] density at world ``positions`` [N,3], without gradient; N may be millions."""
        return self._in_chunks(self.field.density, positions)

    @torch.no_grad()
    def albedo(self, positions: Tensor) -> Tensor:
        """[N,3] albedo in [0,1] at world ``positions`` [N,3], without gradient; N may be millions."""
        return self._in_chunks(lambda chunk: self.field(chunk).albedo, positions)

    @torch.no_grad()
    def normals(self, positions: Tensor) -> Tensor:
        """[N,3] unit analytic normals at world ``positions`` [N,3], without gradient; N may be millions."""
        return self._in_chunks(self.field.analytic_normals, positions)

    def _in_chunks(self, function: Callable[[Tensor], Tensor], positions: Tensor) -> Tensor:
        return torch.cat([function(chunk) for chunk in positions.to(self.device).split(POINTS_PER_CHUNK)])

    def _bundle(self, cameras: Cameras, options: RenderOptions) -> Bundle:
        cameras = cameras.to(self.device)
        background, replaced = options.background, options.replaced
        if background is None or replaced is None or replaced.all():
            replaced = None
        elif not replaced.any():
            background = replaced = None

        def for_each_ray(values: Tensor) -> Tensor:
            return move(values, self.device).repeat_interleave(cameras.height * cameras.width, 0)

        return Bundle(
            cameras.rays(),
            for_each_ray(cameras.light),
            None if background is None else for_each_ray(background),
            None if replaced is None else for_each_ray(replaced),
        )

    def _behind(self, bundle: Bundle) -> Tensor:
        """[R,3] each ray's background colour."""
        if bundle.background is None:
            return self._own_background(bundle.rays.directions)
        if bundle.replaced is None:
            return bundle.background
        return torch.where(bundle.replaced[:, None], bundle.background, self._own_background(bundle.rays.directions))

    def _own_background(self, directions: Tensor) -> Tensor:
        if self.background is None:
            return move(torch.tensor([PLAIN_BACKGROUND]), self.device).expand(directions.shape[0], 3)
        return self.background(directions)

    def sample(self, rays: Rays, *, encoded: bool = False) -> RaySamples:
        """The samples of ``rays``, at most ``max_samples``, without jitter.

        With ``prune_alpha``, samples that do not contribute are dropped, for which the field is evaluated at all of
        them. With ``encoded``, those that are left keep their encoding, if the backend can train with it: it is not
        computed again, and needs the memory of all samples' features for a moment.
        """
        return self._pruned(self._march(rays, None), rays, encoded=encoded)

    @torch.no_grad()
    def _march(self, rays: Rays, rng: torch.Generator | None) -> RaySamples:
        return sample_rays(
            rays,
            self.occupancy,
            step_size=self.step_size,
            max_samples=self.settings.max_samples,
            jitter=rng,
            backend=self.sampler_backend,
        )

    @torch.no_grad()
    def _pruned(self, samples: RaySamples, rays: Rays, *, encoded: bool) -> RaySamples:
        if self.settings.prune_alpha == 0:
            return samples
        # At most the mean, as in the occupancy grid: a scene of low density everywhere keeps samples to train on.
        threshold = self.occupancy.density.mean().clamp(max=-math.log1p(-self.settings.prune_alpha) / self.step_size)
        positions, _ = sample_points(samples, rays, backend=self.sampler_backend)
        if not (encoded and self.keeps_encodings):
            density, points = self._in_chunks(self.field.density, positions), None
        else:
            density, points = self.field.density_and_points(positions)
        kept = contributes(samples, density, threshold, backend=self.sampler_backend)
        samples = samples.where(kept)
        return samples if points is None else replace(samples, encoded=points.where(kept, len(samples.ray_indices)))

    def _composite(self, bundle: Bundle, samples: RaySamples, options: RenderOptions) -> dict[str, Tensor]:
        """The fields of Rendering as [R,C], composited along each of R rays; and "samples" [R,1], their number."""
        shaded = needs_normals(options.shading)
        rays = bundle.rays
        positions, depth = sample_points(samples, rays, backend=self.sampler_backend)
        wants_normals = options.normals or shaded
        sample = self.field(positions, encoded=samples.encoded, keep_features=wants_normals)
        weights = render_weights(sample.density, samples, backend=self.sampler_backend)
        normal = self._normals(positions, sample, weights, options.normals_above) if wants_normals else None
        to_light = F.normalize(samples.of_rays(bundle.light) - positions, dim=-1) if shaded else None
        colour = shade(options.shading, sample.albedo, normal, to_light, options.ambient)

        opacity, image, first, second = composite(weights, colour, depth, samples, backend=self.sampler_backend)
        mean = first / opacity.clamp(min=SMALLEST_OPACITY)
        seen = {
            "opacity": opacity,
            "image": image + (1 - opacity) * self._behind(bundle),
            "depth": rays.origins.norm(dim=-1, keepdim=True) + mean,
            "depth_variance": second / opacity.clamp(min=SMALLEST_OPACITY) - mean.square(),
        }
        others = {"normal": normal, "albedo": sample.albedo if shaded else None}
        seen |= {
            name: accumulate(values, samples, weights=weights, backend=self.sampler_backend)
            for name, values in others.items()
            if values is not None
        }
        if normal is not None and torch.is_grad_enabled():  # a penalty, which only training asks for
            away = (normal * samples.of_rays(rays.directions)).sum(-1).clamp(min=0).square()
            seen["orientation"] = accumulate(
                away[:, None], samples, weights=weights.detach(), backend=self.sampler_backend
            )
        seen["samples"] = samples.offsets.diff()[:, None].float()
        return seen

    def _normals(self, positions: Tensor, sample: FieldSample, weights: Tensor, smallest_weight: float) -> Tensor:
        """[S,3] normals of the samples of larger weights, zero for the others."""
        visible = (weights.detach() > smallest_weight).nonzero()[:, 0]
        if self.settings.normals == "analytic" or not torch.is_grad_enabled():
            # Where no kernel gives analytic normals, a backward pass does, whose saved tensors an enclosing checkpoint
            # must not recompute. Detached: a hook that keeps an output itself makes a cycle with the output's node,
            # which is never freed.
            with saved_tensors_hooks(Tensor.detach, lambda tensor: tensor):
                normals = self.field.analytic_normals_of(visible, positions, sample)
        else:
            seen = positions.index_select(0, visible)
            normals = self.field.finite_difference_normals(seen, self.settings.finite_difference_eps)
        return torch.zeros_like(positions).index_copy(0, visible, normals)


def _concatenated(chunks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _images(channels: dict[str, Tensor], cameras: Cameras) -> Rendering:
    shape = (len(cameras), cameras.height, cameras.width, -1)
    images = {name: values.reshape(shape).permute(0, 3, 1, 2) for name, values in channels.items() if name != "samples"}
    absent: dict[str, Tensor | None] = {"normal": None, "orientation": None, "albedo": None}
    return Rendering(**{**absent, **images}, samples_per_ray=channels["samples"].mean())  # type: ignore[arg-type]
