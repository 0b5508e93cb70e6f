#!/usr/bin/env bash
# torch 2.13.0: what torch.jit.trace has recorded is kept until the process ends, the weights of the network included.
#
# Expected: when the traced function and the network are deleted and collected, their memory is free again.
# Seen: every round below keeps 16 MB, the weights of its network. (A worker of nfsd3d that traced the network of each of its jobs grew by 30 MB a job; now networks of one
# architecture share a recording.)
#
# Exits with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6

cat > trace.py <<'PY'
import gc
import sys
import warnings

import torch

warnings.simplefilter("ignore")
torch.set_num_threads(1)
SIDE, ROUNDS = 2048, 8  # float32: 16 MB


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def one(kind):
    network = torch.nn.Linear(SIDE, SIDE, bias=False).requires_grad_(False)
    given = torch.randn(4, SIDE)
    if kind == "function":
        traced = torch.jit.trace(lambda given: network(given), given, check_trace=False)
    for _ in range(3):
        network(given) if kind == "no trace" else traced(given)


for kind in ("no trace", "function"):
    one(kind)
    gc.collect()
    before = resident()
    for _ in range(ROUNDS):
        one(kind)
        gc.collect()
    growth = (resident() - before) / ROUNDS
    print(f"{kind}: grows by {growth:.1f} MB a trace", file=sys.stderr)
    print(f"{kind}: {'grows' if growth > 12 else 'stays' if growth < 4 else 'between'}")
PY
venv/bin/python trace.py | tee seen
printf 'no trace: stays\nfunction: grows\n' | diff - seen
