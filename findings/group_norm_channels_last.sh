#!/usr/bin/env bash
# torch 2.13.0 on a CPU: group normalisation in bfloat16 is many times slower in the channels-last layout.
#
# Expected: about the same time, since the layout is the one that convolutions on a CPU are often faster in.
# Seen: for 12 images of 48 channels and 16x16 pixels in 16 groups of 3, 24 times as long (at least eight times is
# checked). A UNet that gets its latents from an encoder in channels last keeps the layout from layer to layer, and is a
# tenth slower than with contiguous latents. (nfsd3d makes latents contiguous on a CPU.)
#
# Exits with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6

cat > layouts.py <<'PY'
import statistics
import time

import torch

torch.set_num_threads(1)
weight = bias = torch.ones(48, dtype=torch.bfloat16)


def seconds(images):
    begin = time.perf_counter()
    torch.nn.functional.group_norm(images, 16, weight, bias)
    return time.perf_counter() - begin


images = torch.randn(12, 48, 16, 16).bfloat16()
layouts = images, images.to(memory_format=torch.channels_last)
turns = [[seconds(layout) for layout in layouts] for _ in range(300)][50:]
contiguous, channels_last = (statistics.median(column) for column in zip(*turns))
print(f"{1e6 * contiguous:.0f} and {1e6 * channels_last:.0f} microseconds")
print(f"at least eight times as long: {channels_last > 8 * contiguous}")
PY
venv/bin/python layouts.py | tee seen
tail -n 1 seen | diff - <(echo "at least eight times as long: True")
