"""A neural radiance field in a hash grid, seen by ray marching through an occupancy grid."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Parameter
from torch.utils.checkpoint import checkpoint

from nfsd3d.cameras import Cameras, Rays
from nfsd3d.device import move
from nfsd3d.generators.base import Rendering
from nfsd3d.generators.nerf.background import Background
from nfsd3d.generators.nerf.compositing.compositing import accumulate, contributing, render_weights
from nfsd3d.generators.nerf.field import HashGridField
from nfsd3d.generators.nerf.occupancy import OccupancyGrid
from nfsd3d.generators.nerf.sampling.sampling import RaySamples, sample_rays, step_length
from nfsd3d.generators.nerf.settings import NeRFSettings
from nfsd3d.generators.nerf.shading import needs_normals, shade

# Points that export functions evaluate together.
POINTS_PER_CHUNK = 2**18
# Normals cost several evaluations of the field; samples of a smaller weight do without.
SMALLEST_VISIBLE_WEIGHT = 1e-3
# Opacity below which a pixel has no depth.
SMALLEST_OPACITY = 1e-6
PLAIN_BACKGROUND = (1.0, 1.0, 1.0)
"""RGB in [0,1] behind the object with ``background="color"``."""


class NeRF(nn.Module):
    """A generator (see ``nfsd3d.generators.base.Generator``) of views of one object."""

    def __init__(
        self,
        settings: NeRFSettings,
        *,
        field_backend: str = "torch",
        sampler_backend: str = "torch",
        tensor_cores: bool = False,
    ) -> None:
        """``tensor_cores``: the field's network may round its factors to TF32 (see ``HashGridField``).

        Raises InputError for a backend that is not there.
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
        """Where the parameters are."""
        return self.occupancy.density.device

    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """Parameters by the name of their learning rate: "encoding", "network" and "background" (may be empty)."""
        return {
            "encoding": list(self.field.encoding.parameters()),
            "network": list(self.field.network.parameters()),
            "background": [] if self.background is None else list(self.background.parameters()),
        }

    def update(self, step: int, rng: torch.Generator) -> None:
        """Renews the occupancy grid every ``occupancy_interval`` steps (at step 0 too); ``rng`` is on the CPU."""
        if step % self.settings.occupancy_interval == 0:
            self.occupancy.update(self.density, step, rng)

    def render(
        self,
        cameras: Cameras,
        rng: torch.Generator | None = None,
        *,
        background: Tensor | None = None,
        replaced: Tensor | None = None,
        shading: str = "albedo",
        ambient: float = 0.1,
        normals: bool = False,
        rays_per_chunk: int | None = None,
    ) -> Rendering:
        """The view of each of the B cameras.

        ``rng``, a generator on the CPU, jitters the samples along the rays; without it the view is deterministic.
        ``background`` [B,3] in [0,1] replaces the generator's own: in all views, or in those where ``replaced`` [B]
        (bool, on the CPU, so that nobody waits for a GPU to learn whether there are any) is true. ``shading`` is one
        of ``shading.SHADINGS``, with ``ambient`` light in [0,1] besides the camera's lamp. ``normals`` asks for normals
        where shading needs none.

        ``rays_per_chunk`` bounds the memory: so many pixels of all views are coloured together, and coloured again in
        the backward pass, where each part's memory is free before the next part needs it. All rays are sampled first
        and once, with the same numbers from ``rng`` and the same length of a step: image and gradient are those of the
        undivided view, but for the order of additions.
        """
        given = cameras.azimuth, background, replaced
        with self.occupancy.side_stream.ahead(self.occupancy.occupied, *given) as outlive:
            bundle = self._bundle(cameras, background, replaced)
            samples = self._march(bundle.rays, rng)
            outlive([*bundle.tensors, *samples.tensors])
        samples = self._pruned(samples, bundle.rays)
        parts = list(_parts(bundle, samples, rays_per_chunk))
        if len(parts) == 1:
            return _images(self._render_samples(*parts[0], shading, ambient, normals), cameras)
        seen = [
            # The forward pass draws nothing: there is no random state to keep.
            checkpoint(
                self._render_samples, *part, shading, ambient, normals, use_reentrant=False, preserve_rng_state=False
            )
            for part in parts
        ]
        return _images({name: torch.cat([part[name] for part in seen]) for name in seen[0]}, cameras)

    @torch.no_grad()
    def render_in_chunks(
        self,
        cameras: Cameras,
        *,
        background: Tensor | None = None,
        shading: str = "albedo",
        ambient: float = 0.1,
        normals: bool = False,
        pixels: int = 2**15,
    ) -> Rendering:
        """``render`` of many or large views, without gradient and jitter, ``pixels`` rays at a time."""
        bundle = self._bundle(cameras, background)
        bundles = [bundle.part(first, first + pixels) for first in range(0, len(bundle.rays), pixels)]
        parts = [
            self._render_samples(part, self.sample(part.rays, None), shading, ambient, normals) for part in bundles
        ]
        return _images({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, cameras)

    @torch.no_grad()
    def density(self, positions: Tensor) -> Tensor:
        """[N] density at world ``positions`` [N,3], without gradient; N may be millions."""
        return self._in_parts(self.field.density, positions)

    @torch.no_grad()
    def albedo(self, positions: Tensor) -> Tensor:
        """[N,3] albedo in [0,1] at world ``positions`` [N,3], without gradient; N may be millions."""
        return self._in_parts(lambda part: self.field(part).albedo, positions)

    @torch.no_grad()
    def normals(self, positions: Tensor) -> Tensor:
        """[N,3] unit analytic normals at world ``positions`` [N,3], without gradient; N may be millions."""
        return self._in_parts(self.field.analytic_normals, positions)

    def _in_parts(self, function: Callable[[Tensor], Tensor], positions: Tensor) -> Tensor:
        return torch.cat([function(part) for part in positions.to(self.device).split(POINTS_PER_CHUNK)])

    def _bundle(self, cameras: Cameras, background: Tensor | None, replaced: Tensor | None = None) -> "_Bundle":
        cameras = cameras.to(self.device)
        if background is None or replaced is None or replaced.all():
            replaced = None
        elif not replaced.any():
            background = replaced = None

        def for_each_ray(values: Tensor) -> Tensor:
            return move(values, self.device).repeat_interleave(cameras.height * cameras.width, 0)

        return _Bundle(
            cameras.rays(),
            for_each_ray(cameras.light),
            None if background is None else for_each_ray(background),
            None if replaced is None else for_each_ray(replaced),
        )

    def _behind(self, bundle: "_Bundle") -> Tensor:
        """[R,3] what each ray sees behind the object."""
        if bundle.background is None:
            return self._own_background(bundle.rays.directions)
        if bundle.replaced is None:
            return bundle.background
        return torch.where(bundle.replaced[:, None], bundle.background, self._own_background(bundle.rays.directions))

    def _own_background(self, directions: Tensor) -> Tensor:
        if self.background is None:
            return move(torch.tensor([PLAIN_BACKGROUND]), self.device).expand(directions.shape[0], 3)
        return self.background(directions)

    def sample(self, rays: Rays, rng: torch.Generator | None) -> RaySamples:
        """The intervals to evaluate, ``max_samples`` at most; jittered with ``rng`` (on the CPU) if given.

        With ``prune_alpha`` those that contribute nothing are left out, which costs a pass over the density of all.
        """
        return self._pruned(self._march(rays, rng), rays)

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
    def _pruned(self, samples: RaySamples, rays: Rays) -> RaySamples:
        if self.settings.prune_alpha == 0:
            return samples
        # As in the occupancy grid: an empty or foggy scene keeps samples to learn from.
        threshold = self.occupancy.density.mean().clamp(max=-math.log1p(-self.settings.prune_alpha) / self.step_size)
        density = self._in_parts(self.field.density, samples.positions(rays))
        return contributing(samples, density, threshold)

    def _render_samples(
        self, bundle: "_Bundle", samples: RaySamples, shading: str, ambient: float, normals: bool
    ) -> dict[str, Tensor]:
        """What each of R rays sees through its samples: the fields of Rendering as [R,C]."""
        rays = bundle.rays
        with torch.no_grad():
            positions = samples.positions(rays)
            # Depths are counted from the middle of the world, which keeps the variance's digits.
            middles = rays.origins.norm(dim=-1)
            depth = samples.t_mids - middles[samples.ray_indices]
        sample = self.field(positions)
        weights = render_weights(sample.density, samples, backend=self.sampler_backend)
        normal = self._normals(positions, weights) if normals or needs_normals(shading) else None
        to_light = None if normal is None else F.normalize(bundle.light[samples.ray_indices] - positions, dim=-1)
        colour = shade(shading, sample.albedo, normal, to_light, ambient)

        columns = {"opacity": torch.ones_like(depth)[:, None], "image": colour,
                   "depth": depth[:, None], "depth_variance": depth.square()[:, None]}  # fmt: skip
        if normal is not None:
            columns["normal"] = normal
        if needs_normals(shading):
            columns["albedo"] = sample.albedo
        values = torch.cat(list(columns.values()), dim=-1)
        sums = accumulate(values, samples, weights=weights, backend=self.sampler_backend)
        seen = dict(zip(columns, sums.split([column.shape[-1] for column in columns.values()], dim=-1), strict=True))

        opacity = seen["opacity"]
        seen["image"] = seen["image"] + (1 - opacity) * self._behind(bundle)
        mean = seen["depth"] / opacity.clamp(min=SMALLEST_OPACITY)
        seen["depth_variance"] = seen["depth_variance"] / opacity.clamp(min=SMALLEST_OPACITY) - mean.square()
        seen["depth"] = middles[:, None] + mean
        if normal is not None:
            away = (normal * rays.directions[samples.ray_indices]).sum(-1).clamp(min=0).square()
            seen["orientation"] = accumulate(
                away[:, None], samples, weights=weights.detach(), backend=self.sampler_backend
            )
        seen["samples"] = samples.offsets.diff()[:, None].float()
        return seen

    def _normals(self, positions: Tensor, weights: Tensor) -> Tensor:
        """[S,3] normals of the samples that can be seen, zero for the others."""
        visible = (weights.detach() > SMALLEST_VISIBLE_WEIGHT).nonzero()[:, 0]
        if self.settings.normals == "analytic" or not torch.is_grad_enabled():
            # They have a backward pass of their own, whose tensors a checkpoint around them is not to recompute.
            with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
                normals = self.field.analytic_normals(positions[visible])
        else:
            normals = self.field.finite_difference_normals(positions[visible], self.settings.finite_difference_eps)
        return torch.zeros_like(positions).index_copy(0, visible, normals)


@dataclass(frozen=True)
class _Bundle:
    """R rays with the light [R,3] of each.

    ``background`` [R,3] replaces the generator's own, if given, for all rays or for those of ``replaced`` [R] (bool).
    """

    rays: Rays
    light: Tensor
    background: Tensor | None
    replaced: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.rays.origins, self.rays.directions, self.light, self.background, self.replaced

    def part(self, first: int, last: int) -> "_Bundle":
        return _Bundle(
            Rays(self.rays.origins[first:last], self.rays.directions[first:last]),
            self.light[first:last],
            None if self.background is None else self.background[first:last],
            None if self.replaced is None else self.replaced[first:last],
        )


def _parts(bundle: _Bundle, samples: RaySamples, pixels: int | None) -> Iterator[tuple[_Bundle, RaySamples]]:
    """``pixels`` rays at a time (None: all) with their samples; views of the same memory, apart from the indices."""
    if pixels is None or pixels >= len(bundle.rays):
        yield bundle, samples
        return
    bounds = [*range(0, len(bundle.rays), pixels), len(bundle.rays)]
    ends = [*samples.offsets[:-1:pixels].tolist(), samples.ray_indices.shape[0]]
    for (first, last), (start, end) in zip(pairwise(bounds), pairwise(ends), strict=True):
        part = RaySamples(
            samples.ray_indices[start:end] - first,
            samples.t_starts[start:end],
            samples.t_ends[start:end],
            samples.offsets[first : last + 1] - start,
        )
        yield bundle.part(first, last), part


def _images(channels: dict[str, Tensor], cameras: Cameras) -> Rendering:
    samples_per_ray = channels.pop("samples").mean()
    shape = (len(cameras), cameras.height, cameras.width, -1)
    images = {name: values.reshape(shape).permute(0, 3, 1, 2) for name, values in channels.items()}
    absent: dict[str, Tensor | None] = {"normal": None, "orientation": None, "albedo": None}
    return Rendering(**{**absent, **images}, samples_per_ray=samples_per_ray)  # type: ignore[arg-type]
