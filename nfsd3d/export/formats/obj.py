"""Wavefront OBJ, with its material and texture."""

import io
import re

import numpy as np

from nfsd3d.export.formats.base import Extras, Files, facts_of, png_bytes
from nfsd3d.export.formats.placement import Placed


def obj_files(placed: Placed, stem: str, extras: Extras) -> Files:
    """Wavefront OBJ with material and texture, if there is one, in files named after it.

    It has positions with sRGB colours (the usual "v x y z r g b"), normals, texture coordinates (from the lower left
    corner) and faces. Positions are not duplicated along seams, so the mesh stays closed.
    """
    safe = re.sub(r"\s+", "_", stem)  # names in an OBJ end at a space
    mesh = placed.mesh
    comments = "".join(f"# {key}: {value}\n" for key, value in facts_of(placed, extras).items())
    text = io.StringIO()
    text.write(comments if mesh.texture is None else f"{comments}mtllib {safe}.mtl\n")
    text.write("o model\n")
    np.savetxt(text, np.hstack([placed.turned(mesh.vertices), mesh.colors]), fmt="v %.6g %.6g %.6g %.4f %.4f %.4f")
    np.savetxt(text, placed.turned(mesh.normals), fmt="vn %.4f %.4f %.4f")
    files: Files = {}
    if mesh.texture is None:
        corners, form = [mesh.faces, mesh.faces], "%d//%d"
    else:
        np.savetxt(text, mesh.texture.uv * [1, -1] + [0, 1], fmt="vt %.6f %.6f")
        corners, form = [mesh.faces, mesh.texture.faces, mesh.faces], "%d/%d/%d"
        material = f"{comments}newmtl albedo\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {safe}.png\n"
        files = {f"{safe}.png": png_bytes(mesh.texture.image)}
        if mesh.texture.normal_map is not None:
            files[f"{safe}-normals.png"] = png_bytes(mesh.texture.normal_map.image)
            material += f"norm {safe}-normals.png\n"  # of the extension of MTL for physically based materials
        files[f"{safe}.mtl"] = material.encode()
        text.write("usemtl albedo\n")
    # OBJ indices start at 1; a vertex and its normal share their index.
    np.savetxt(text, np.stack(corners, axis=-1).reshape(len(mesh.faces), -1) + 1, fmt=f"f {form} {form} {form}")
    return {**files, f"{stem}.obj": text.getvalue().encode()}
