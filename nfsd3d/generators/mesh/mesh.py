"""A textured triangle mesh as a generator: its vertices and texture are what is optimised.

Design note. The views are those of a rasteriser instead of a ray marcher: one surface point per pixel, opaque, with
outlines of half a pixel. So a mesh shows what a field only approaches, and a step costs the teacher's time and little
else. The triangles never change: what changes is where their vertices are (``offset``) and what the texture shows, and
a mesh whose ``offset`` does not learn is written as it was read. Colours change in space (:mod:`.color_change`), or
each texel by itself.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from nfsd3d.device import move
from nfsd3d.generators.base import DEFAULT_OPTIONS, Rendering, RenderOptions, SceneGenerator
from nfsd3d.generators.mesh.color_change import ColorChange, kept_in_range
from nfsd3d.generators.mesh.rasterize.coverage import CoverageBackend, cover, doubled_area
from nfsd3d.generators.mesh.rasterize.fragments import Fragments, fragments, project
from nfsd3d.generators.mesh.rasterize.silhouettes import Edges, antialias, crossings
from nfsd3d.generators.mesh.settings import MeshSettings
from nfsd3d.generators.mesh.smoothness import laplacian, normal_consistency, vertex_normals
from nfsd3d.generators.mesh.surface import SurfaceMesh, Texture, nearest_known
from nfsd3d.generators.mesh.texture import Pyramid
from nfsd3d.generators.nerf.background import Background
from nfsd3d.generators.nerf.shading import needs_normals, shade
from nfsd3d.views.cameras import Cameras, Rays

PLAIN_BACKGROUND = 1.0
"""RGB in [0,1] behind the object with ``background="color"``."""

PIXELS_PER_CHUNK = 2**20
"""Pixels that are rendered together, without gradient."""

_TOPOLOGY = ("start", "faces", "uv", "uv_faces", "uv_source", "offset", "texture")
"""Tensors whose sizes are those of the mesh."""


class TexturedMesh(SceneGenerator):
    """A mesh of V vertices and F triangles with a texture of S x S texels.

    Vertices are ``start`` [V,3] + ``offset`` [V,3] in world units, ``faces`` [F,3]; ``uv`` [T,2], ``uv_faces`` [F,3]
    and ``uv_source`` [T] as in `nfsd3d.generators.mesh.surface.Texture`; ``texture`` [S,S,3] sRGB in [0,1]. With
    ``color_change``, that is what it was at first, and the colours are the texture's plus the change where the surface
    was at first; without one, the texture itself learns.
    """

    sized_by_state = frozenset(_TOPOLOGY)

    start: Tensor
    faces: Tensor
    uv: Tensor
    uv_faces: Tensor
    uv_source: Tensor
    texture: Tensor

    def __init__(
        self,
        settings: MeshSettings,
        mesh: SurfaceMesh | None = None,
        *,
        backend: CoverageBackend = "torch",
        field_backend: str = "torch",
    ) -> None:
        """``mesh`` has a texture; without one, the mesh is empty until a state is loaded.

        ``field_backend``: of the grids in which colours change, as of a NeRF's.

        Raises InputError for a backend that is not installed.
        """
        super().__init__()
        self.settings = settings
        self.backend = backend
        for name in _TOPOLOGY[:5]:
            self.register_buffer(name, torch.empty(0))
        self.offset = Parameter(torch.empty(0))
        self.color_change: ColorChange | None = None
        if settings.color_cells:
            self.register_buffer("texture", torch.empty(0))
            self.color_change = ColorChange(settings.color_cells, settings.radius, field_backend)
        else:
            self.texture = Parameter(torch.empty(0))
        self._levels: Pyramid | None = None
        self.background = Background() if settings.background == "learned" else None
        if mesh is None:
            empty = np.zeros((0, 3), np.int32)
            texture = Texture(np.zeros((0, 2), np.float32), empty[:, 0], empty, np.zeros((1, 1, 3), np.uint8))
            nothing = empty.astype(np.float32)
            mesh = SurfaceMesh(nothing, empty, nothing, nothing, texture)
        self.replace(mesh)

    def replace(self, mesh: SurfaceMesh) -> None:
        """Takes over a textured ``mesh``; the background stays."""
        assert mesh.texture is not None
        texture = mesh.texture
        self._take(
            {
                "start": torch.from_numpy(mesh.vertices.astype(np.float32)),
                "faces": torch.from_numpy(mesh.faces).long(),
                "uv": torch.from_numpy(texture.uv.astype(np.float32)),
                "uv_faces": torch.from_numpy(texture.faces).long(),
                "uv_source": torch.from_numpy(texture.source).long(),
                "offset": torch.zeros(len(mesh.vertices), 3),
                "texture": torch.from_numpy(texture.image.astype(np.float32) / 255),
            }
        )

    def _take(self, tensors: dict[str, Tensor]) -> None:
        for name in _TOPOLOGY:
            if isinstance(held := getattr(self, name), Parameter):
                held.data = tensors[name].to(self.device)  # the optimiser's own
            else:
                setattr(self, name, tensors[name].to(self.device))
        self.edges = Edges.of(self.faces)
        self._levels = None

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> "TexturedMesh":
        super()._apply(function, recurse)
        self.edges = self.edges.map(function)
        self._levels = None
        return self

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False) -> object:  # type: ignore[override]
        """Restores what ``state_dict`` returned, of a mesh of any size."""
        self._take({name: state_dict[name].clone() for name in _TOPOLOGY})
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.offset.device

    @property
    def radius(self) -> float:
        """Half-width in world units of the cube that holds the object."""
        return self.settings.radius

    @property
    def vertices(self) -> Tensor:
        """[V,3] world positions; differentiable."""
        return self.start + self.offset

    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """Parameters by the name of their learning rate; "background" may be empty."""
        change = self.color_change
        return {
            "geometry": [self.offset],  # after its steps it has no gradient
            "texture": [self.get_parameter("texture")] if change is None else list(change.parameters()),
            "background": [] if self.background is None else list(self.background.parameters()),
        }

    @torch.no_grad()
    def update(self, step: int, rng: torch.Generator) -> None:
        """Clamps the texture to [0,1], and fixes the geometry after its steps."""
        if self.color_change is None:
            self.texture.clamp_(0, 1)
        self.offset.requires_grad_(step < self.settings.geometry_steps)
        if not self.offset.requires_grad:
            self.offset.grad = None

    def render(
        self, cameras: Cameras, rng: torch.Generator | None = None, options: RenderOptions = DEFAULT_OPTIONS
    ) -> Rendering:
        """The view of each of the B cameras; differentiable. Nothing is random, and ``rng`` has no effect."""
        cameras = cameras.to(self.device)
        rays, vertices = cameras.rays(), self.vertices
        screen = project(vertices, cameras)
        size = (len(cameras), cameras.height, cameras.width)
        found = fragments(screen, self.faces, cover(screen, self.faces, *size[1:], backend=self.backend))
        columns = self._columns(found, vertices, cameras, options)
        inside = torch.cat(list(columns.values()), dim=1)
        outside = {name: inside.new_zeros(len(rays), values.shape[1]) for name, values in columns.items()}
        outside["image"] = self._behind(rays, cameras, options)
        pixels = torch.cat(list(outside.values()), dim=1).index_copy(0, found.pixel, inside)
        inverse_depth = pixels.new_zeros(len(rays)).index_copy(0, found.pixel, found.inverse_depth.detach())
        pixels = antialias(pixels, crossings(screen, self.faces, self.edges, inverse_depth.reshape(size)))
        parts = pixels.split([values.shape[1] for values in columns.values()], dim=1)
        images = {name: _images(part, size) for name, part in zip(columns, parts, strict=True)}
        point = found.interpolate(vertices, self.faces)
        distance = (point - rays.origins[found.pixel]).norm(dim=-1, keepdim=True)
        depth = rays.origins.norm(dim=-1, keepdim=True).index_copy(0, found.pixel, distance)
        normals = "normal" in images
        none = images["opacity"].new_zeros(())
        return Rendering(
            image=images["image"],
            opacity=images["opacity"],
            depth=_images(depth, size),
            depth_variance=none.expand_as(images["opacity"]),
            normal=images.get("normal"),
            orientation=none.expand_as(images["opacity"]) if normals else None,
            albedo=images.get("albedo"),
            samples_per_ray=images["opacity"].detach().mean(),
            shape_penalty=self._shape_penalty(vertices) if torch.is_grad_enabled() and vertices.requires_grad else None,
        )

    @torch.no_grad()
    def render_in_chunks(
        self,
        cameras: Cameras,
        options: RenderOptions = DEFAULT_OPTIONS,
        on_chunk: Callable[[], None] = lambda: None,
    ) -> Rendering:
        """``render`` of many or large views without gradient; ``on_chunk`` is called after a few of them."""
        count = max(1, PIXELS_PER_CHUNK // (cameras.height * cameras.width))
        parts = []
        for first in range(0, len(cameras), count):
            parts.append(self.render(cameras[first : first + count], None, _of_views(options, first, count)))
            on_chunk()
        return _concatenated(parts)

    def surface(self) -> SurfaceMesh:
        """The mesh as it is now."""
        with torch.no_grad():
            vertices = self.vertices
            normals = vertex_normals(vertices, self.faces)
            image = (self._shown_texture() * 255).round().to(torch.uint8)
            # Vertex colours are those of one of a vertex's places on the texture.
            points = self.start[self.uv_source]
            sampled = self._colors(self.uv, self.uv.new_zeros(len(self.uv)), points).clamp(0, 1)
            colors = torch.zeros_like(vertices).index_copy(0, self.uv_source, sampled)
        texture = Texture(
            self.uv.cpu().numpy(),
            self.uv_source.cpu().numpy().astype(np.int32),
            self.uv_faces.cpu().numpy().astype(np.int32),
            image.cpu().numpy(),
        )
        faces = self.faces.cpu().numpy().astype(np.int32)
        return SurfaceMesh(vertices.cpu().numpy(), faces, normals.cpu().numpy(), colors.cpu().numpy(), texture)

    def _columns(
        self, found: Fragments, vertices: Tensor, cameras: Cameras, options: RenderOptions
    ) -> dict[str, Tensor]:
        """[P,C] what the covered pixels show, by the names of `Rendering`."""
        place, footprint = found.interpolate(self.uv, self.uv_faces), found.footprint(self.uv, self.uv_faces)
        albedo = self._colors(place, footprint, found.interpolate(self.start, self.faces))
        shaded = needs_normals(options.shading)
        normal = to_light = None
        if options.normals or shaded:
            normal = F.normalize(found.interpolate(vertex_normals(vertices, self.faces), self.faces), dim=-1)
            # Of an open surface the back is seen, too.
            normal = torch.where(doubled_area(found.corners.detach())[:, None] > 0, -normal, normal)
            light = cameras.light[found.pixel // (cameras.height * cameras.width)]
            to_light = F.normalize(light - found.interpolate(vertices, self.faces), dim=-1)
        columns = {
            "opacity": torch.ones_like(albedo[:, :1]),
            "image": shade(options.shading, albedo, normal, to_light, options.ambient),
        }
        if normal is not None:
            columns["normal"] = normal
        if shaded:
            columns["albedo"] = albedo
        return columns

    def _colors(self, place: Tensor, footprint: Tensor, points: Tensor) -> Tensor:
        """[N,3] the colours at ``place`` [N,2] on the texture, as pixels of a ``footprint`` [N] see them.

        ``points`` [N,3]: where the surface was there at first.
        """
        if self.color_change is None:
            return Pyramid(self.texture).sample(place, footprint)
        if self._levels is None:
            self._levels = Pyramid(self.texture)
        return kept_in_range(self._levels.sample(place, footprint) + self.color_change(points))

    def _shown_texture(self) -> Tensor:
        """[S,S,3] in [0,1]: the texture with the change of colour."""
        if self.color_change is None:
            return self.texture.clamp(0, 1)
        size = self.texture.shape[0]
        # Texels are pixels of a view of the charts, all at the same depth.
        screen = torch.cat([self.uv * size, torch.ones_like(self.uv[:, :1])], dim=-1)[None]
        found = fragments(screen, self.uv_faces, cover(screen, self.uv_faces, size, size, backend=self.backend))
        change = torch.full_like(self.texture, torch.nan).reshape(-1, 3)
        change[found.pixel] = self.color_change(found.interpolate(self.start, self.faces))
        shown = change.view_as(self.texture).cpu().numpy()
        change = torch.from_numpy(nearest_known(shown, ~np.isnan(shown[..., 0]))).to(self.texture)
        return (self.texture + change.nan_to_num(0.0)).clamp(0, 1)

    def _behind(self, rays: Rays, cameras: Cameras, options: RenderOptions) -> Tensor:
        """[N,3] the colour behind the object at every pixel."""
        each = cameras.height * cameras.width
        given, replaced = options.background, options.replaced
        if given is not None:
            given = move(given, self.device).repeat_interleave(each, 0)
            if replaced is None or replaced.all():
                return given
        own = torch.full_like(rays.directions, PLAIN_BACKGROUND)
        if self.background is not None:
            own = self.background(rays.directions)
        if given is None or replaced is None:
            return own
        return torch.where(move(replaced, self.device).repeat_interleave(each, 0)[:, None], given, own)

    def _shape_penalty(self, vertices: Tensor) -> Tensor:
        settings = self.settings
        total = settings.laplacian * laplacian(vertices, self.edges) if settings.laplacian else vertices.new_zeros(())
        if settings.normal_consistency:
            total = total + settings.normal_consistency * normal_consistency(vertices, self.faces, self.edges)
        return total


def _images(pixels: Tensor, size: tuple[int, int, int]) -> Tensor:
    """[B,C,H,W] of the pixels [N,C] of all views."""
    return pixels.reshape(*size, -1).permute(0, 3, 1, 2)


def _of_views(options: RenderOptions, first: int, count: int) -> RenderOptions:
    """The options of ``count`` of the views."""

    def part(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[first : first + count]

    return replace(options, background=part(options.background), replaced=part(options.replaced))


def _concatenated(parts: list[Rendering]) -> Rendering:
    def joined(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        if values[0] is None:
            return None
        return torch.stack(values).mean() if values[0].dim() == 0 else torch.cat(values)

    return Rendering(**{name: joined(name) for name in vars(parts[0])})  # type: ignore[arg-type]
