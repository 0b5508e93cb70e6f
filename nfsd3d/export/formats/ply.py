"""PLY with vertex colours."""

from nfsd3d.export.formats.base import Extras, Files, facts_of
from nfsd3d.export.formats.placement import Placed, turned_mesh


def ply_files(placed: Placed, stem: str, extras: Extras) -> Files:
    """Binary PLY with normals and 8-bit sRGB vertex colours."""
    import trimesh

    content = trimesh.exchange.ply.export_ply(turned_mesh(placed).to_trimesh(), vertex_normal=True)
    # The header is ASCII.
    lines = (f"comment {key}: {value}\n" for key, value in facts_of(placed, extras).items())
    comments = "".join(lines).encode("ascii", "backslashreplace")
    first, second, rest = content.split(b"\n", 2)
    return {f"{stem}.ply": first + b"\n" + second + b"\n" + comments + rest}
