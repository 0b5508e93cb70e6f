"""3MF: what slicers read, z-up, with a unit and, by its materials extension, a colour for each vertex.

Written by the 3MF Consortium's own library, and packed again. Colours are sRGB with 8 bits. PrusaSlicer reads the
file and drops them.
"""

import io
import locale
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lib3mf
import numpy as np

from nfsd3d.export.formats.base import Extras, Files, facts_of
from nfsd3d.export.formats.placement import Placed

_UNITS = {"m": "Meter", "cm": "CentiMeter", "mm": "MilliMeter", "in": "Inch"}


def threemf_files(placed: Placed, stem: str, extras: Extras) -> Files:
    """A 3MF of one object, with the unit of ``placed`` and ``extras`` as its description."""
    model = lib3mf.get_wrapper().CreateModel()
    model.SetUnit(getattr(lib3mf.ModelUnit, _UNITS[placed.unit]))
    facts = facts_of(placed, extras)
    metadata = model.GetMetaDataGroup()
    metadata.AddMetaData("", "Title", facts.get("prompt", "model"), "xs:string", True)
    metadata.AddMetaData("", "Application", facts["generator"], "xs:string", True)
    metadata.AddMetaData("", "Description", "; ".join(f"{k}: {v}" for k, v in facts.items()), "xs:string", True)
    item = model.AddMeshObject()
    item.SetName("model")
    mesh = placed.mesh
    positions = [lib3mf.Position((lib3mf.ctypes.c_float * 3)(*row)) for row in placed.turned(mesh.vertices).tolist()]
    triangles = [lib3mf.Triangle((lib3mf.ctypes.c_uint32 * 3)(*row)) for row in mesh.faces.tolist()]
    item.SetGeometry(positions, triangles)
    rgb, index = np.unique(np.round(mesh.colors * 255).astype(np.uint8), axis=0, return_inverse=True)
    group = model.AddColorGroup()
    ids = np.array([group.AddColor(lib3mf.Color(*row, 255)) for row in rgb.tolist()])
    resource = group.GetResourceID()
    numbers = ids[index.reshape(-1)[mesh.faces]].tolist()
    three = lib3mf.ctypes.c_uint32 * 3
    item.SetAllTriangleProperties([lib3mf.TriangleProperties(resource, three(*row)) for row in numbers])
    item.SetObjectLevelProperty(resource, int(ids[0]))
    model.AddBuildItem(item, lib3mf.get_wrapper().GetIdentityTransform())
    with tempfile.TemporaryDirectory() as folder, _kept_locale():
        path = Path(folder) / "model.3mf"
        model.QueryWriter("3mf").WriteToFile(str(path))
        return {f"{stem}.3mf": _repacked(path)}


def _repacked(path: Path) -> bytes:
    """The package as plain ZIP: lib3mf writes ZIP64, which assimp 5.2 cannot read, and a fifth more bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(path) as written, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as package:
        for name in written.namelist():
            package.writestr(zipfile.ZipInfo(name), written.read(name), zipfile.ZIP_DEFLATED)
    return packed.getvalue()


@contextmanager
def _kept_locale() -> Iterator[None]:
    """lib3mf 2.5 leaves the process in the locale "C", in which Python opens text files as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)
