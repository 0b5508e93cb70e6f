"""The colours of samples under a point light."""

import torch
from torch import Tensor

from nfsd3d.generators.base import SHADINGS


def needs_normals(shading: str) -> bool:
    """Whether ``shading`` depends on normals."""
    return shading != "albedo"


def shade(shading: str, albedo: Tensor, normals: Tensor | None, to_light: Tensor | None, ambient: float) -> Tensor:
    """[N,3] colours in [0,1] under a point light (DreamFusion, arXiv 2209.14988, sec. 3.1).

    ``albedo``: the albedo [N,3] itself. ``lambertian``: albedo times ``ambient`` + (1 - ambient) max(n.l, 0), with
    ``normals`` n [N,3] and unit vectors ``to_light`` l [N,3]. ``textureless``: the same on white. ``normals``: world x,
    y and z of [-1,1] as red, green and blue (Fantasia3D, arXiv 2303.13873, sec. 3.1, shows normals to the teacher).
    """
    if shading not in SHADINGS:
        raise ValueError(f"shading {shading!r}: choose one of {', '.join(SHADINGS)}")
    if not needs_normals(shading):
        return albedo
    if shading == "normals" and normals is not None:
        return (normals + 1) / 2
    if normals is None or to_light is None:
        raise ValueError(f"shading {shading!r} needs normals and directions to the light")
    brightness = ambient + (1 - ambient) * (normals * to_light).sum(-1, keepdim=True).clamp(min=0)
    return brightness * (albedo if shading == "lambertian" else torch.ones_like(albedo))
