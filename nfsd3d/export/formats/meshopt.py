"""A GLB compressed for the web by gltfpack (EXT_meshopt_compression), an external program."""

import subprocess
import tempfile
from pathlib import Path

from nfsd3d.errors import RunFailed
from nfsd3d.settings.export import GLTFPACK, check_packages


def compressed(glb: bytes) -> bytes:
    """``glb`` compressed; names, metadata and triangles are kept, positions have 16 bits.

    Raises:
        InputError: gltfpack is not installed.
        RunFailed: gltfpack failed.
    """
    check_packages((), "web")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.glb", Path(folder) / "packed.glb"
        source.write_bytes(glb)
        command = [GLTFPACK, "-i", str(source), "-o", str(target), "-cc", "-kn", "-km", "-ke", "-vp", "16", "-vtf"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not target.is_file():
            raise RunFailed(f"{GLTFPACK}: {' '.join((done.stderr or done.stdout).split()) or done.returncode}")
        return target.read_bytes()
