"""Vertex colours of a source mesh, merged where several vertices became one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfsd3d.export.formats.source.messages import counted
from nfsd3d.export.formats.source.part import Part
from nfsd3d.export.formats.source.vertices import sums_by_number
from nfsd3d.generators.mesh.surface import linear_to_srgb, srgb_to_linear


def merged_vertex_colors(
    parts: Sequence[Part], vertex: NDArray[Any], first: NDArray[Any], notes: list[str], *, textured: bool
) -> NDArray[Any]:
    """[V,3] the sRGB colours of the merged vertices: means in linear light where several colours meet.

    ``vertex`` [N]: the merged vertex of each vertex of all parts; ``first`` [V]: the first vertex of each merged one.
    With a texture, the colour at that first vertex's place on it.
    """
    if colorless := sum(part.colors is None and part.base is None and not part.textured for part in parts):
        some = f"has {counted(colorless, 'part')} without colours:"
        notes.append(f"{'has no colours: it is' if colorless == len(parts) else some} grey")
    colors = np.concatenate([part.vertex_colors() for part in parts])
    chosen = colors[first]
    if not textured:
        counts = np.bincount(vertex)[:, None]
        means = linear_to_srgb(sums_by_number(srgb_to_linear(colors), vertex) / counts)
        several = np.unique(vertex[(np.abs(colors - means[vertex]) > 1.5 / 255).any(axis=1)])
        if len(several):
            notes.append(f"has {counted(len(several), 'vertex')} with several colours: each has their mean")
        chosen[several] = means[several]
    return chosen
