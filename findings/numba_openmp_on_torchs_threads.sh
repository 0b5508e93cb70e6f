#!/usr/bin/env bash
# numba 0.68.1 beside torch 2.13.0 (CPU): numba's OpenMP kernels run on torch's threads, whichever of the two came first.
#
# Expected: numba's OpenMP layer asks for the system's libgomp by its full name (libgomp.so.1.0.0), torch brings a copy of
# its own, so each has its own threads: three busy threads on two cores, which starve each other, since they spin.
# Seen: two. If torch was first, its copy is there for every library to see, and the layer, which is loaded at the first
# kernel, finds GOMP_parallel in it. If a kernel was first, the system's library has the name that torch asks for
# (libgomp.so.1) and takes the place of torch's copy. (nfsd3d uses that layer where it is so: with pools of their own, as
# numba's other layers have, rendering was no faster on two threads than on one.)
#
# Exits with 0 while this is so, with 1 when it has changed. Needs Linux and the system's libgomp.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numba==0.68.1 numpy==2.4.6

cat > threads.py <<'PY'
import os
import sys
import time
from pathlib import Path

os.environ["NUMBA_THREADING_LAYER"] = "omp"
os.environ["NUMBA_NUM_THREADS"] = "2"
if sys.argv[1] == "torch first":
    import torch
import numba
import numpy as np


@numba.njit(parallel=True)
def increase(values):
    for index in numba.prange(values.shape[0]):
        values[index] += 1


values = np.zeros(4_000_000)
increase(values)
if sys.argv[1] == "numba first":
    import torch
torch.set_num_threads(2)
matrix = torch.ones(600, 600)
matrix @ matrix


def times():
    stat = {path.parent.name: path.read_text() for path in Path("/proc/self/task").glob("*/stat")}
    return {thread: sum(map(int, text.rpartition(")")[2].split()[11:13])) for thread, text in stat.items()}


def busy(work):
    before, begin = times(), time.process_time()
    while time.process_time() < begin + 1:
        work()
    spent = {thread: ticks - before.get(thread, 0) for thread, ticks in times().items()}
    return {thread for thread, ticks in spent.items() if ticks > 0.1 * sum(spent.values())}


of_numba, of_torch = busy(lambda: increase(values)), busy(lambda: matrix @ matrix)
print(f"{sys.argv[1]}: {len(of_numba)} threads of numba, {len(of_torch)} of torch, {len(of_numba | of_torch)} in all")
PY
for order in "torch first" "numba first"; do
    venv/bin/python threads.py "$order"
done | tee seen
diff - seen <<'SEEN'
torch first: 2 threads of numba, 2 of torch, 2 in all
numba first: 2 threads of numba, 2 of torch, 2 in all
SEEN
