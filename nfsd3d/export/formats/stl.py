"""STL: triangles alone."""

from nfsd3d.export.formats.base import GENERATOR, Extras, Files
from nfsd3d.export.formats.placement import Placed, turned_mesh

_STL_HEADER = 80


def stl_files(placed: Placed, stem: str, extras: Extras) -> Files:
    """Binary STL, which has neither colours nor a unit: both are in its header, as far as there is room."""
    import trimesh

    content = trimesh.exchange.stl.export_stl(turned_mesh(placed).to_trimesh())
    about = f"{GENERATOR}, {placed.up} up, in {placed.unit}: {' '.join(str(extras.get('prompt', '')).split())}"
    header = about.encode("ascii", "replace")[:_STL_HEADER].ljust(_STL_HEADER)
    return {f"{stem}.stl": header + content[_STL_HEADER:]}
