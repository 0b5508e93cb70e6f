"""Pictures that a disk has no room for."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource")

WRITE = """
import resource, signal
from pathlib import Path
import numpy as np
from nfsd3d.visualize.image_grid import write_jpeg, write_png
from nfsd3d.visualize.images import write_video

image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
pictures = ((write_png, "a.png", image), (write_jpeg, "a.jpg", image), (write_video, "a.mp4", iter([image] * 9)))
for write, name, content in pictures:
    try:
        write(Path(name), content)
    except OSError as error:
        print(name, error.strerror)
"""


def test_one_error_is_raised_and_nothing_else_printed_or_left(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WRITE], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout == "".join(f"{name} File too large\n" for name in ("a.png", "a.jpg", "a.mp4"))
    assert done.stderr == "" and not list(tmp_path.iterdir())
