"""Reads the base colours and textures of glTF materials."""

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from nfsd3d.export.formats.source.gltf import GltfDocument
from nfsd3d.export.formats.source.messages import NO_UV
from nfsd3d.export.formats.source.siblings import decoded_image, texture_error
from nfsd3d.generators.mesh.surface import FloatArray, linear_to_srgb, srgb_to_linear
from nfsd3d.runs.files import first_line

_GLOSS = "KHR_materials_pbrSpecularGlossiness"


class GltfMaterials:
    """The materials of a glTF ``document``; what is ignored or replaced is added to ``notes``."""

    def __init__(self, document: GltfDocument, notes: list[str]) -> None:
        self.document, self.notes = document, notes
        self.images: dict[tuple[int, tuple[float, ...]], NDArray[np.uint8] | None] = {}

    def of_primitive(
        self, primitive: Mapping[str, Any]
    ) -> tuple[NDArray[Any] | None, FloatArray | None, NDArray[np.uint8] | None]:
        """The base colour [3], UV positions [N,2] and texture [H,W,3] of a primitive, each None where there is none.

        The colour is linear; the texture is sRGB, and multiplied by the colour.

        Raises:
            InputError: the texture is damaged.
        """
        if "material" not in primitive:
            return None, None, None
        material = self.document.json["materials"][primitive["material"]]
        if material.get("alphaMode", "OPAQUE") != "OPAQUE":
            self.notes.append("is transparent in places: it is optimised as opaque")
        values = material.get("pbrMetallicRoughness", {})
        factor, texture = values.get("baseColorFactor"), values.get("baseColorTexture")
        if gloss := material.get("extensions", {}).get(_GLOSS):
            factor, texture = gloss.get("diffuseFactor"), gloss.get("diffuseTexture")
        base = np.array([1.0, 1.0, 1.0] if factor is None else factor[:3], np.float64).clip(0, 1)
        if texture is None:
            return base, None, None
        transform = texture.get("extensions", {}).get("KHR_texture_transform", {})
        place = f"TEXCOORD_{transform.get('texCoord', texture.get('texCoord', 0))}"
        if place not in primitive["attributes"]:
            self.notes.append(NO_UV)
            return base, None, None
        uv = self.document.array(primitive["attributes"][place]).astype(np.float32, copy=False)
        return base, _transformed(uv, transform), self._image(texture["index"], base)

    def _image(self, index: int, base: NDArray[Any]) -> NDArray[np.uint8] | None:
        """[H,W,3] a texture times the linear colour ``base`` [3]; None if there is none."""
        texture = self.document.json["textures"][index]
        source = texture.get("extensions", {}).get("EXT_texture_webp", {}).get("source", texture.get("source"))
        if source is None:
            self.notes.append("has a texture of a format that is not read, such as KTX2: it has a plain colour instead")
            return None
        key = (source, tuple(base))
        if key not in self.images:
            image = self._picture(source)
            if image is not None and (base != 1).any():
                table = linear_to_srgb(srgb_to_linear(np.arange(256)[:, None] / 255) * base)
                image = np.round(table * 255).astype(np.uint8)[image, np.arange(3)]
            self.images[key] = image
        return self.images[key]

    def _picture(self, source: int) -> NDArray[np.uint8] | None:
        """[H,W,3] an image of the document; None if its file is missing."""
        image = self.document.json["images"][source]
        if "uri" in image and not image["uri"].startswith("data:"):
            return self.document.siblings.image(unquote(image["uri"]))
        if "uri" in image:
            content = self.document.bytes_at(image["uri"])
        else:
            content = self.document.view_bytes(image["bufferView"])
        try:
            return decoded_image(content)
        except Exception as error:  # Pillow's decoders raise nearly every exception on damaged files
            raise texture_error(self.document.path, str(image.get("name", source)), first_line(error)) from error


def _transformed(uv: FloatArray, transform: Mapping[str, Any]) -> FloatArray:
    """UV positions after KHR_texture_transform: scaled, turned counter-clockwise as seen (y downwards), shifted."""
    if not {"offset", "rotation", "scale"} & transform.keys():
        return uv
    cos, sin = math.cos(transform.get("rotation", 0.0)), math.sin(transform.get("rotation", 0.0))
    scaled = uv * np.array(transform.get("scale", [1.0, 1.0]))
    turned = scaled @ np.array([[cos, -sin], [sin, cos]])
    return (turned + transform.get("offset", [0.0, 0.0])).astype(np.float32)
