"""Antialiased silhouettes: the part of a view's gradient that moves outlines.

Design note. Problem: which triangle a pixel shows changes in jumps, so that an outline has no gradient. nvdiffrast
(arXiv 2011.03277) blends two neighbouring pixels by the place at which the outline crosses between their centres; it
looks for the outline among the edges of the two triangles that the pixels show, and misses it where triangles are
smaller than pixels, as here. Idea: begin with the mesh instead. Its silhouette edges, those between a triangle that
faces the camera and one that does not, form closed curves on the screen; every crossing of such a curve with the line
between two neighbouring centres is found from the edge, whatever its length. Of several between two centres the
outermost counts, and none that lies behind what the outer pixel shows. As in nvdiffrast, an edge counts between
neighbours of a row where it is steep, of a column where it is flat: otherwise slanted outlines would count twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nfsd3d.generators.mesh.gather import gather
from nfsd3d.generators.mesh.rasterize.coverage import doubled_area


@dataclass(frozen=True)
class Edges:
    """The E edges of a mesh, of its topology alone.

    ``ends`` [E,2]: vertices; ``faces`` [E,2]: the triangles on both sides, the second -1 at a border; ``opposite`` [E]:
    the third vertex of the first triangle.
    """

    ends: Tensor
    faces: Tensor
    opposite: Tensor

    @classmethod
    def of(cls, faces: Tensor) -> Edges:
        """The edges of the triangles [F,3]. Where more than two meet, the first two of them count."""
        sides = torch.stack([faces, faces.roll(-1, 1), faces.roll(-2, 1)], dim=-1).reshape(-1, 3)
        low, high = sides[:, :2].sort(1).values.unbind(1)
        vertices = int(faces.max()) + 1 if len(faces) else 1
        keys, edge = torch.unique(low * vertices + high, return_inverse=True)  # much faster than of pairs
        ends = torch.stack([keys // vertices, keys % vertices], dim=1)
        order = edge.argsort(stable=True)
        count = torch.bincount(edge, minlength=len(ends))
        first = count.cumsum(0) - count
        triangle = order // 3
        other = torch.where(count > 1, triangle[first + (count > 1)], -1)
        return cls(ends, torch.stack([triangle[first], other], dim=1), sides[order[first], 2])

    def map(self, function: Callable[[Tensor], Tensor]) -> Edges:
        """The same with ``function`` of each tensor."""
        return Edges(function(self.ends), function(self.faces), function(self.opposite))


@dataclass(frozen=True)
class Crossings:
    """N places where a visible outline passes between the centres of two neighbouring pixels.

    ``inner`` and ``outer`` [N]: indices of the pixels [B,H,W], on the side of the surface and beside it; ``distance``
    [N] in [0,1]: from the inner centre to the outline, in pixels, differentiable.
    """

    inner: Tensor
    outer: Tensor
    distance: Tensor


def crossings(screen: Tensor, faces: Tensor, edges: Edges, inverse_depth: Tensor) -> Crossings:
    """The crossings of the views ``screen`` [B,V,3] (see ``coverage.cover``) of triangles ``faces`` [F,3].

    ``inverse_depth`` [B,H,W] of what the pixels show, 0 for nothing.
    """
    with torch.no_grad():
        seen = doubled_area(screen[:, faces]) > 0
        first, second = edges.faces.unbind(1)
        outline = (seen[:, first] != seen[:, second.clamp(min=0)]) | (second < 0)
        view, edge = outline.nonzero(as_tuple=True)
    flat, start = screen.reshape(-1, 3), view * screen.shape[1]
    ends = gather(flat, edges.ends[edge] + start[:, None])
    third = flat[edges.opposite[edge] + start].detach()
    drawn = ((ends[..., 2] > 0).all(-1) & (third[:, 2] > 0)).nonzero()[:, 0]
    found = [_along(axis, view[drawn], gather(ends, drawn), third[drawn], inverse_depth.detach()) for axis in (0, 1)]
    return Crossings(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _along(axis: int, view: Tensor, ends: Tensor, third: Tensor, shown: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The crossings with lines between neighbours along ``axis`` (0: horizontal), as the fields of `Crossings`.

    Edges ``ends`` [N,2,3] of ``view`` [N], whose surface lies on the side of ``third`` [N,3].
    """
    _, height, width = shown.shape
    length, lines = (width, height) if axis == 0 else (height, width)
    bound = 1.0 if axis == 0 else 1.0 - torch.finfo(shown.dtype).eps  # an edge of 45 degrees counts in one direction
    u, v = ends[..., axis], ends[..., 1 - axis]
    # Half open, so that of two edges that meet on a line one crosses it.
    first = (v.detach().amin(1) - 0.5).ceil().clamp(0, lines).long()
    last = (v.detach().amax(1) - 0.5).ceil().clamp(0, lines).long()
    count = last - first
    item = torch.repeat_interleave(torch.arange(len(ends), device=ends.device), count)
    line = first[item] + torch.arange(len(item), device=ends.device) - (count.cumsum(0) - count)[item]
    u, v, third = gather(u, item), gather(v, item), third[item]
    slope = (u[:, 1] - u[:, 0]) / (v[:, 1] - v[:, 0])
    place = u[:, 0] + slope * (line + 0.5 - v[:, 0])
    below = (place.detach() - 0.5).floor()
    position = place - 0.5 - below
    # The surface is on the side of smaller u.
    smaller = third[:, axis] < (u[:, 0] + slope * (third[:, 1 - axis] - v[:, 0])).detach()
    along = ((line + 0.5 - v[:, 0]) / (v[:, 1] - v[:, 0])).detach()
    near = ends[item, 0, 2].detach() * (1 - along) + ends[item, 1, 2].detach() * along

    inside = ((below >= 0) & (below + 1 < length)).nonzero()[:, 0]
    steep = (slope.detach().abs() <= bound)[inside]
    item, line, smaller, near = (values[inside] for values in (item, line, smaller, near))
    low = below[inside].long()
    stride, across = (1, width) if axis == 0 else (width, 1)
    low = view[item] * (height * width) + line * across + low * stride
    inner, outer = torch.where(smaller, low, low + stride), torch.where(smaller, low + stride, low)
    distance = torch.where(smaller, gather(position, inside), 1 - gather(position, inside))
    flat = shown.reshape(-1)
    visible = ((flat[inner] > 0) & (flat[outer] < near)).nonzero()[:, 0]
    place, away = low[visible], distance[visible].detach()
    outermost = torch.zeros_like(flat).scatter_reduce(0, place, away, "amax")
    last = away == outermost[place]
    first = place.new_full(flat.shape, len(low)).scatter_reduce(0, place[last], visible[last], "amin")
    kept = visible[last][first[place[last]] == visible[last]]
    kept = kept[steep[kept]]
    return inner[kept], outer[kept], gather(distance, kept)


def antialias(pixels: Tensor, found: Crossings) -> Tensor:
    """[N,C] the ``pixels`` [N,C] of all views, blended with their neighbours along outlines.

    An outline at less than half a pixel from the inner centre gives the inner pixel a part of the outer one's value,
    otherwise the outer pixel a part of the inner one's.
    """
    share = 0.5 - found.distance
    inward = share > 0
    target, source = torch.where(inward, found.inner, found.outer), torch.where(inward, found.outer, found.inner)
    share = share.abs()
    # A pixel that outlines pass on several sides is not replaced more than once.
    total = torch.zeros(len(pixels), dtype=pixels.dtype, device=pixels.device).index_add(0, target, share)
    share = share / gather(total.clamp(min=1), target)
    return pixels.index_add(0, target, share[:, None] * (gather(pixels, source) - gather(pixels, target)))
