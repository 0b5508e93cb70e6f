"""Reads an OBJ file, with its materials (MTL) and textures.

Lines are parsed by numpy, all of one keyword at once. trimesh 5.2 mixes up faces of different forms, takes comments for
statements, and reads only one material file.
"""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfsd3d.export.formats.source.messages import NO_UV, check_triangle_count, counted
from nfsd3d.export.formats.source.part import GREY, Part
from nfsd3d.export.formats.source.siblings import Material, SiblingFiles, decoded_text
from nfsd3d.export.formats.source.trimesh_loaders import uv_from_top

_FACE = re.compile(rb"f(?: [-+]?\d+(?:/(?:[-+]?\d+)?){0,2})+")
_VERTEX = re.compile(rb"v[tn]?(?: [-+]?(?:(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|nan|inf|infinity))+", re.IGNORECASE)
"""Well-formed lines, for the error that names the first other one."""


def read_obj(path: Path, content: bytes, notes: list[str]) -> list[Part]:
    """The parts of an OBJ file: one for each material, in the order of their first ``usemtl``.

    Triangles of a textured material that have no UV positions become a second part.

    Raises:
        InputError: it has too many triangles, or a damaged texture.
        ValueError: it is damaged; the message names the line.
    """
    lines = _Lines(content)
    polygons = int(lines.chosen(b"f").sum())
    check_triangle_count(path, polygons)
    if not polygons:
        return []
    faces = lines.rows(b"f")
    corners, counts = _corners(lines, faces)
    fan, polygon = _fans(counts)
    check_triangle_count(path, len(fan))
    if len(fan) > polygons:
        notes.append(f"has polygons: they are cut into {len(fan):,} triangles")
    vertices = _Vertices(lines)
    corners = vertices.resolved(corners, np.repeat(faces.lines, counts))

    siblings = SiblingFiles(path.parent)
    materials: dict[str, Material] = {}
    for listed in dict.fromkeys(rest for _, rest in lines.statements(b"mtllib") if rest):
        materials = {**siblings.materials(listed), **materials}  # of equal names, the first is taken
    names, number = _used_materials(lines, faces.lines)
    order = np.argsort(number[polygon], kind="stable")
    ends = np.cumsum(np.bincount(number[polygon], minlength=len(names)))
    parts = [
        part
        for name, triangles in zip(names, np.split(fan[order], ends[:-1]), strict=True)
        for part in vertices.parts(corners[triangles], materials.get(name, Material()), siblings, notes)
    ]
    siblings.report(path, notes)
    return parts


@dataclass
class _Rows:
    """The numbers in all lines of one keyword.

    ``lines`` [R]: the indices of these lines; ``numbers`` [N], and for each the index of its ``row`` [N] and the
    ``separator`` [N] before it, a space or slash.
    """

    lines: NDArray[np.int64]
    numbers: NDArray[Any]
    row: NDArray[np.int64]
    separator: NDArray[np.uint8]

    def table(self, width: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """[R+1,width] the first numbers of each row, filled up with zeros, and how many a row has [R].

        Row 0 is zero: the value of corners without one.
        """
        counts = np.bincount(self.row, minlength=len(self.lines))
        column = np.arange(len(self.row)) - (np.cumsum(counts) - counts)[self.row]
        kept = column < width
        table = np.zeros((len(self.lines) + 1, width))
        table[self.row[kept] + 1, column[kept]] = self.numbers[kept]
        return table, counts


class _Lines:
    """The lines of an OBJ by their keywords, without indentation, tabs, repeated spaces and continuations."""

    def __init__(self, content: bytes) -> None:
        content = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        content = content.translate(bytes.maketrans(b"\t\v\f", b"   ")) + b"\n"
        if b"\\" in content:
            content = re.sub(rb"^ *#.*", b"", content, flags=re.MULTILINE)  # may end in the backslash of a path
            content = re.sub(rb"\\ *\n(?:.*\\ *\n)*.*", _continued, content)
        while b"  " in content:
            content = content.replace(b"  ", b" ")
        self.content = content.replace(b"\n ", b"\n").replace(b" \n", b"\n").removeprefix(b" ")
        self.characters = np.frombuffer(self.content, np.uint8)
        self.ends = np.flatnonzero(self.characters == ord("\n")) + 1
        self.starts = np.concatenate([[0], self.ends[:-1]])
        second = self.characters.take(self.starts + 1, mode="clip").astype(np.uint16)
        second[second == ord("\n")] = ord(" ")
        self.keys = self.characters[self.starts].astype(np.uint16) << 8 | second

    def chosen(self, keyword: bytes) -> NDArray[np.bool_]:
        """[L] which lines begin with a keyword, of which the first two characters count."""
        return self.keys == int.from_bytes(keyword.ljust(2)[:2], "big")

    def statements(self, keyword: bytes) -> Iterator[tuple[int, str]]:
        """The lines of a keyword: the index and what follows, in lines that have it."""
        for line in np.flatnonzero(self.chosen(keyword)):
            found, _, rest = self.content[self.starts[line] : self.ends[line] - 1].partition(b" ")
            if found == keyword:
                yield int(line), decoded_text(rest)

    def rows(self, keyword: bytes) -> _Rows:
        """The numbers in all lines of a keyword; of faces, 0 where an index is missing between or after slashes.

        Raises:
            ValueError: a line has something else.
        """
        chosen = self.chosen(keyword)
        text = self.characters[np.repeat(chosen, self.ends - self.starts)].tobytes()
        if b"#" in text:
            text = re.sub(rb" ?#.*", b"", text)
        text = text.replace(keyword + b" ", b" ")
        if keyword == b"f":
            text = text.replace(b"//", b"/0/").replace(b"/ ", b"/0 ").replace(b"/\n", b"/0\n")
        # Before each number is a space or slash, and after each row a newline.
        structure = np.frombuffer(text.translate(None, bytes(set(range(256)) - set(b" /\n"))), np.uint8)
        ends = structure == ord("\n")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", DeprecationWarning)  # a ValueError since numpy 2.4
                if keyword == b"f":
                    numbers: NDArray[Any] = np.fromstring(text.replace(b"/", b" "), np.int64, sep=" ")
                else:
                    numbers = np.fromstring(text, np.float64, sep=" ")
        except (ValueError, DeprecationWarning) as error:
            raise self.unreadable(keyword) from error
        rows = _Rows(np.flatnonzero(chosen), numbers, np.cumsum(ends)[~ends], structure[~ends])
        if len(numbers) != len(rows.row):
            raise self.unreadable(keyword)
        return rows

    def unreadable(self, keyword: bytes) -> ValueError:
        """The error of the first line of a keyword that is not of its form."""
        pattern = _FACE if keyword == b"f" else _VERTEX
        for line in np.flatnonzero(self.chosen(keyword)):
            text = self.content[self.starts[line] : self.ends[line] - 1]
            if not pattern.fullmatch(text.partition(b"#")[0].rstrip()):
                return ValueError(f"line {line + 1} is unreadable: {decoded_text(text)[:60]}")
        return ValueError(f"a line that begins with {keyword.decode()} is unreadable")


def _continued(match: re.Match[bytes]) -> bytes:
    """Continued lines as one, and empty lines instead of the others, so that line numbers stay."""
    return re.sub(rb"\\ *\n", b" ", match[0]) + b"\n" * match[0].count(b"\n")


def _corners(lines: _Lines, faces: _Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[C,3] the indices v, vt, vn of all corners as in the file, 0 without one, and how many corners a face has [R].

    Raises:
        ValueError: a corner has more than three indices.
    """
    begins = faces.separator == ord(" ")
    first = np.flatnonzero(begins)
    corner = np.cumsum(begins) - 1
    place = np.arange(len(corner)) - first[corner]
    if place.max(initial=0) > 2:
        raise lines.unreadable(b"f")
    corners = np.zeros((len(first), 3), np.int64)
    corners[corner, place] = faces.numbers
    return corners, np.bincount(faces.row[first], minlength=len(faces.lines))


def _fans(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[F,3] the triangles of faces with ``counts`` [R] corners, as indices of corners, and the face of each [F]."""
    triangles = np.maximum(counts - 2, 0)
    face = np.repeat(np.arange(len(counts)), triangles)
    step = np.arange(len(face)) - (np.cumsum(triangles) - triangles)[face] + 1
    start = (np.cumsum(counts) - counts)[face]
    fan = np.stack([start, start + step, start + step + 1], axis=1)
    fan[step > 1] = np.roll(fan[step > 1], -1, axis=1)  # turned, as trimesh does with quads
    return fan, face


def _used_materials(lines: _Lines, faces: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    """The names of materials in the file's order, and the index of that of the faces in the lines ``faces`` [R]."""
    statements = [(-1, ""), *lines.statements(b"usemtl")]
    index = {name: number for number, name in enumerate(dict.fromkeys(name for _, name in statements))}
    latest = np.searchsorted([line for line, _ in statements], faces) - 1
    return list(index), np.array([index[name] for _, name in statements])[latest]


class _Vertices:
    """Positions, UV positions and normals of an OBJ: tables by index, which begins at 1."""

    def __init__(self, lines: _Lines) -> None:
        vertices, uv, normals = (lines.rows(keyword) for keyword in (b"v", b"vt", b"vn"))
        table, counts = vertices.table(6)
        if (counts < 3).any():
            line = vertices.lines[(counts < 3).argmax()] + 1
            raise ValueError(f"line {line}: a vertex has less than three coordinates")
        self.lines = (vertices.lines, uv.lines, normals.lines)
        self.positions, self.colors = table[:, :3], table[:, 3:]
        self.colored = np.concatenate([[False], counts >= 6])  # of 4 numbers, the last is a weight
        if (self.colors[self.colored] > 1).any():
            self.colors = self.colors / 255
        self.uv, self.normals = uv.table(2)[0], normals.table(3)[0]

    def resolved(self, corners: NDArray[np.int64], lines: NDArray[np.int64]) -> NDArray[np.int64]:
        """[C,3] the indices ``corners`` [C,3] in ``lines`` [C] with absolute ones for negative ones.

        UV positions and normals of which the file has none at all are left out.

        Raises:
            ValueError: an index is out of range.
        """
        resolved = np.zeros_like(corners)
        wrong = np.zeros(corners.shape, bool)
        for kind, defined in enumerate(self.lines):
            index = corners[:, kind]
            if len(defined) or kind == 0:
                resolved[:, kind] = np.where(index < 0, np.searchsorted(defined, lines) + index + 1, index)
                least = (index != 0) | (kind == 0)
                wrong[:, kind] = (resolved[:, kind] < least) | (resolved[:, kind] > len(defined))
        if wrong.any():
            corner, column = divmod(int(wrong.argmax()), 3)
            name = ("vertex", "UV position", "normal")[column]
            raise ValueError(f"line {lines[corner] + 1}: there is no {name} {corners[corner, column]}")
        return resolved

    def parts(
        self, corners: NDArray[np.int64], material: Material, siblings: SiblingFiles, notes: list[str]
    ) -> Iterator[Part]:
        """The parts of the triangles ``corners`` [M,3,3] of a material: those with a texture and those without."""
        image = None
        if material.texture is not None and len(corners):
            textured = (corners[:, :, 1] > 0).all(axis=1)
            if not textured.any():
                notes.append(NO_UV)
            elif (image := siblings.image(material.texture)) is not None:
                yield self._part(corners[textured], material.base, image)
                corners = corners[~textured]
                if len(corners):
                    without = f"has {counted(len(corners), 'triangle')} without UV positions in a part with a texture"
                    notes.append(f"{without}: the colour of the material is taken instead")
        if len(corners):
            yield self._part(corners, material.base, None)

    def _part(
        self, corners: NDArray[np.int64], base: NDArray[np.float64] | None, image: NDArray[np.uint8] | None
    ) -> Part:
        """The part of the triangles ``corners`` [M,3,3]; it has a vertex for each combination of indices."""
        vertex, uv, normal = corners.reshape(-1, 3).T
        key = vertex
        for index, table in ((uv if image is not None else vertex, self.uv), (normal, self.normals)):
            if index.any() and (index != vertex).any():
                _, key = np.unique(key * len(table) + index, return_inverse=True)
        _, first, faces = np.unique(key, return_index=True, return_inverse=True)
        vertex, uv, normal = vertex[first], uv[first], normal[first]
        colors, colored = None, self.colored[vertex]
        if colored.any():
            colors = np.where(colored[:, None], self.colors[vertex], GREY if base is None else base)
        return Part(
            self.positions[vertex],
            faces.reshape(-1, 3),
            self.normals[normal] if normal.any() else None,
            uv_from_top(self.uv[uv]) if image is not None else None,
            image,
            colors,
            base,
        )
