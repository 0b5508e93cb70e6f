"""A part of a source mesh: the triangles of one material, with the colours or texture that the file gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfsd3d.export.formats.source.vertices import used_vertices
from nfsd3d.generators.mesh.surface import FloatArray

GREY = 0.5
"""sRGB of a mesh without colours."""


@dataclass
class Part:
    """Triangles of one material, as in the file.

    ``positions`` [N,3] float64; ``faces`` [M,3]; ``normals`` [N,3]; ``uv`` [N,2] as in glTF; ``image`` [H,W,3] uint8
    sRGB, the same object in all parts that share it; ``colors`` [N,3] and ``base`` [3]: sRGB in [0,1]. ``shares``:
    other parts may use the vertices that this one does not.
    """

    positions: NDArray[Any]
    faces: NDArray[Any]
    normals: NDArray[Any] | None = None
    uv: FloatArray | None = None
    image: NDArray[np.uint8] | None = None
    colors: NDArray[Any] | None = None
    base: NDArray[Any] | None = None
    shares: bool = False

    def __post_init__(self) -> None:
        """Checks the numbers of vertices; drops UV positions that are not finite.

        Raises:
            ValueError: arrays do not fit together.
        """
        if self.positions.shape[1] != 3:
            raise ValueError("a vertex has less than three coordinates")
        if len(self.faces) and not (self.faces.min() >= 0 and self.faces.max() < len(self.positions)):
            raise ValueError("a triangle refers to a vertex that is not there")
        for values, width in ((self.normals, 3), (self.uv, 2), (self.colors, 3)):
            if values is not None and values.shape != (len(self.positions), width):
                raise ValueError("vertices have too few normals, UV positions or colours")
        if self.uv is not None and not np.isfinite(self.uv).all():
            self.uv = None

    @property
    def textured(self) -> bool:
        """Whether it has a texture, and places on it."""
        return self.image is not None and self.uv is not None

    @property
    def fits(self) -> bool:
        """Whether it has a texture that does not repeat."""
        return self.image is not None and self.uv is not None and bool(((self.uv > -1e-6) & (self.uv < 1 + 1e-6)).all())

    def used(self) -> Part:
        """The part without vertices that no triangle uses."""
        kept, faces = used_vertices(self.faces, len(self.positions))

        def of_kept(values: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if values is None else values[kept]

        normals, uv, colors = of_kept(self.normals), of_kept(self.uv), of_kept(self.colors)
        return replace(self, positions=self.positions[kept], faces=faces, normals=normals, uv=uv, colors=colors)

    def vertex_colors(self) -> NDArray[Any]:
        """[N,3] sRGB: of the texture, which repeats, or of the vertices (black if no number), the material, or grey."""
        if self.image is not None and self.uv is not None:
            height, width = self.image.shape[:2]
            wrapped = self.uv if self.fits else self.uv - np.floor(self.uv)
            row = (wrapped[:, 1] * height).astype(np.int64).clip(0, height - 1)
            column = (wrapped[:, 0] * width).astype(np.int64).clip(0, width - 1)
            return self.image[row, column] / 255
        if self.colors is not None:
            known = np.isfinite(self.colors).all(axis=1, keepdims=True)
            return np.where(known, self.colors, 0.0).clip(0, 1)
        return np.tile(np.full(3, GREY) if self.base is None else self.base.clip(0, 1), (len(self.positions), 1))

    def unit_normals(self) -> NDArray[np.float64]:
        """[N,3] the file's normals at unit length; zero where there are none, or not finite."""
        if self.normals is None:
            return np.zeros(self.positions.shape)
        normals = np.where(np.isfinite(self.normals).all(axis=1, keepdims=True), self.normals, 0.0)
        return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)


def joined_faces(parts: Sequence[Part]) -> NDArray[np.int64]:
    """[F,3] the triangles of all parts; vertices are numbered through all parts."""
    starts = np.cumsum([0] + [len(part.positions) for part in parts])
    return np.concatenate([part.faces.astype(np.int64) + start for part, start in zip(parts, starts, strict=False)])


def three_columns(values: NDArray[Any]) -> NDArray[np.float64]:
    """[N,3] the first three of the columns of ``values`` [N,C], as 64-bit floats."""
    return np.asarray(values)[:, :3].astype(np.float64)
