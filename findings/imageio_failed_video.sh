#!/usr/bin/env bash
# imageio 2.38.1 with PyAV 18.1.0: a video that cannot be written, because the disk is full, is told twice.
#
# Expected: an OSError is raised where the video is written, and that is all.
# Seen: the OSError is raised; when imageio's object is deleted afterwards, it writes once more, fails, and a second
# traceback ("Exception ignored in") is printed, which no caller can catch. (nfsd3d encodes videos in memory, and writes
# the bytes itself.)
#
# Exits with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet imageio==2.38.1 av==18.1.0 numpy

cat > test.py <<'PY'
import resource
import signal

import imageio.v3 as imageio
import numpy as np

image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # as on a full disk, a file can become no larger
try:
    with imageio.imopen("video.mp4", "w", plugin="pyav") as video:
        video.init_video_stream("libx264", fps=24, pixel_format="yuv420p")
        for _ in range(9):
            video.write_frame(image)
except OSError as error:
    print("raised:", error.strerror)
PY
venv/bin/python test.py 2>errors.txt | tee seen.txt
grep -o "^Exception ignored in: <function PluginV3.__del__" errors.txt | tee -a seen.txt

cat > expected.txt <<'TXT'
raised: File too large
Exception ignored in: <function PluginV3.__del__
TXT
cmp expected.txt seen.txt
