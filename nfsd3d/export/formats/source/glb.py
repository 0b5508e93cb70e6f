"""Reads the scene of a GLB file: its nodes and skins, primitives and their vertex attributes."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfsd3d.export.formats.source.gltf import GltfDocument, glb_chunks, is_own
from nfsd3d.export.formats.source.gltf_materials import GltfMaterials
from nfsd3d.export.formats.source.messages import check_triangle_count, source_error
from nfsd3d.export.formats.source.part import Part, three_columns
from nfsd3d.generators.mesh.surface import linear_to_srgb

_TRIANGLES, _STRIP, _FAN = 4, 5, 6  # glTF primitive modes
_EXTENSIONS = re.compile("KHR_(mesh_quantization|texture_transform|lights_punctual|materials_.*)|EXT_texture_webp")
"""Extensions of glTF that a file may require: what is read, and what changes neither shape nor base colour."""


def read_glb(path: Path, content: bytes, notes: list[str]) -> list[Part]:
    """The parts of a GLB file: one for each primitive of each node in its scene, in scene coordinates.

    Raises:
        InputError: it has too many triangles, a damaged texture, or requires an extension that is not read.
        ValueError: it is damaged; numpy and Python raise other exceptions too.
    """
    document, body = glb_chunks(content)
    own = " (nfsd3d export: --compress none)" if is_own(document) else ""
    for name in document.get("extensionsRequired", ()):
        if not _EXTENSIONS.fullmatch(name):
            remedy = "without compression" if "compression" in name else "without it"
            raise source_error(path, f"requires the glTF extension {name}, which is not read; export it {remedy}{own}")
    return _Scene(GltfDocument(path, document, body), notes).parts()


class _Scene:
    """The scene of a glTF document."""

    def __init__(self, document: GltfDocument, notes: list[str]) -> None:
        self.document, self.notes = document, notes
        self.materials = GltfMaterials(document, notes)

    def parts(self) -> list[Part]:
        """A part for each primitive of each node in the scene."""
        meshes = self.document.json.get("meshes", [])
        used = [
            (primitive, matrix)
            for mesh, matrix in self._placed()
            for primitive in meshes[mesh]["primitives"]
            if primitive.get("mode", _TRIANGLES) in (_TRIANGLES, _STRIP, _FAN)
        ]
        accessors = self.document.json.get("accessors", [])
        counts = (
            (accessors[primitive.get("indices", primitive["attributes"]["POSITION"])]["count"], primitive.get("mode"))
            for primitive, _ in used
        )
        triangles = sum(n // 3 if mode in (None, _TRIANGLES) else n - 2 for n, mode in counts)
        check_triangle_count(self.document.path, triangles)
        sharing = Counter(primitive["attributes"]["POSITION"] for mesh in meshes for primitive in mesh["primitives"])
        parts = [
            self._part(primitive, matrix, sharing[primitive["attributes"]["POSITION"]] > 1)
            for primitive, matrix in used
        ]
        self.document.siblings.report(self.document.path, self.notes)
        return parts

    def _placed(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """The meshes of the scene and their matrices [4,4]."""
        nodes, scenes = self.document.json.get("nodes", []), self.document.json.get("scenes", [])
        children = {child for node in nodes for child in node.get("children", ())}
        roots = [index for index in range(len(nodes)) if index not in children]
        if scenes:
            roots = scenes[self.document.json.get("scene", 0)].get("nodes", [])
        matrices: dict[int, NDArray[Any]] = {}
        pending = [(root, np.eye(4)) for root in reversed(roots)]
        while pending:
            index, parent = pending.pop()
            if index in matrices:
                raise ValueError("a node has two parents")
            matrices[index] = parent @ _local(nodes[index])
            pending += [(child, matrices[index]) for child in reversed(nodes[index].get("children", []))]
        for index, matrix in matrices.items():
            node = nodes[index]
            if "mesh" in node:
                yield node["mesh"], self._bind(node["skin"], matrices) if "skin" in node else matrix

    def _bind(self, index: int, matrices: Mapping[int, NDArray[Any]]) -> NDArray[Any]:
        """[4,4] of the bind pose of a skin: of its first joint, as of the others.

        The matrix of a skinned mesh's own node has no effect, by glTF's specification.
        """
        skin = self.document.json["skins"][index]
        joint = matrices.get(skin["joints"][0], np.eye(4))
        if "inverseBindMatrices" not in skin:
            return joint
        return joint @ self.document.array(skin["inverseBindMatrices"])[0].reshape(4, 4).T

    def _part(self, primitive: Mapping[str, Any], matrix: NDArray[Any], shares: bool) -> Part:
        """A primitive, moved by ``matrix`` [4,4]; ``shares``: others have the same vertices."""
        attributes = primitive["attributes"]
        positions = three_columns(self.document.array(attributes["POSITION"]))
        corners = np.arange(len(positions))
        if "indices" in primitive:
            corners = self.document.array(primitive["indices"])[:, 0].astype(np.int64)
        faces = _triangles(corners, primitive.get("mode", _TRIANGLES))
        normals = None
        if determinant := np.linalg.det(matrix[:3, :3]):
            if "NORMAL" in attributes:
                normals = three_columns(self.document.array(attributes["NORMAL"])) @ np.linalg.inv(matrix[:3, :3])
            if determinant < 0:  # mirrored
                faces = faces[:, ::-1]
        base, uv, image = self.materials.of_primitive(primitive)
        colors = None
        if "COLOR_0" in attributes:
            light = self.document.array(attributes["COLOR_0"])[:, :3] * (1.0 if base is None else base)
            colors = linear_to_srgb(light.clip(0, 1))
        base = None if base is None else linear_to_srgb(base)
        return Part(_moved(positions, matrix), faces, normals, uv, image, colors, base, shares)


def _local(node: Mapping[str, Any]) -> NDArray[np.float64]:
    """[4,4] from a node to its parent."""
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    if "rotation" in node:
        from scipy.spatial.transform import Rotation

        matrix[:3, :3] = Rotation.from_quat(node["rotation"]).as_matrix()  # x, y, z, w in both
    matrix[:3, :3] *= node.get("scale", [1.0, 1.0, 1.0])
    matrix[:3, 3] = node.get("translation", [0.0, 0.0, 0.0])
    return matrix


def _moved(points: NDArray[Any], matrix: NDArray[Any]) -> NDArray[Any]:
    """[N,3] points by a matrix [4,4].

    Without BLAS, which may round equal points differently: they would not be merged.
    """
    columns = [sum(points[:, k] * matrix[row, k] for k in range(3)) + matrix[row, 3] for row in range(3)]
    return np.stack(columns, axis=1)


def _triangles(corners: NDArray[Any], mode: int) -> NDArray[Any]:
    """[F,3] triangles of the vertices of a list, strip or fan."""
    if mode == _TRIANGLES:
        return corners.reshape(-1, 3)
    if mode == _FAN:
        return np.stack([np.full(len(corners) - 2, corners[0]), corners[1:-1], corners[2:]], axis=1)
    strip = np.stack([corners[:-2], corners[1:-1], corners[2:]], axis=1)
    strip[1::2] = strip[1::2, [1, 0, 2]]
    return strip
