"""A GLB compressed for the web by gltfpack (EXT_meshopt_compression), an external program."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from nfsd3d.errors import RunFailed
from nfsd3d.settings.export import GLTFPACK, check_packages

SECONDS = 600
OPTIONS = ("-cc", "-kn", "-km", "-ke", "-vp", "16", "-vc", "16", "-vtf")


def compressed(glb: bytes) -> bytes:
    """``glb`` compressed; its extras and triangles are kept, positions and colours have 16 bits.

    Raises:
        InputError: gltfpack is not installed.
        RunFailed: gltfpack failed.
    """
    check_packages((), "web")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.glb", Path(folder) / "packed.glb"
        source.write_bytes(glb)
        command = [str(shutil.which(GLTFPACK)), "-i", str(source), "-o", str(target), *OPTIONS]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
        if done.returncode != 0 or not target.is_file():
            raise RunFailed(f"{GLTFPACK}: {' '.join((done.stderr or done.stdout).split()) or done.returncode}")
        return target.read_bytes()
