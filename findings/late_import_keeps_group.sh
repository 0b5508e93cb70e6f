#!/usr/bin/env bash
# torch 2.13.0 (CPU): a process group is not freed by destroy_process_group if torch.distributed.nn was imported while there
# was one.
#
# Expected: after destroy_process_group() the threads of Gloo have ended, whatever was imported before.
# Seen: so it is, if torch.distributed.nn.functional was imported before init_process_group. Imported afterwards, its
# functions have the group as the default of their argument `group`, evaluated at the import, and keep it: its threads live
# on until the process ends. Nobody needs to import it: torch's optimisers do so at their first use, by way of torch._dynamo.
# A thread that still holds the tensors of the last reduction waits for Python's lock then; a process that ends at that
# moment aborts ("terminate called without an active exception", 3 of 39 runs of a program), after its work is done, and
# torchrun reports a failure. (nfsd3d imports the module before it makes a group.)
#
# Exits with 0 while this is so, with 1 when it has changed. Needs Linux. The processes end by os._exit, so that none aborts.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6

cat > group.py <<'PY'
import os
import sys
from pathlib import Path

import torch
from torch import distributed

if sys.argv[1] == "before":
    import torch.distributed.nn.functional
distributed.init_process_group("gloo")
torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
distributed.all_reduce(torch.ones(2))
distributed.destroy_process_group()
names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
Path(f"{sys.argv[1]}-{os.environ['RANK']}").write_text(str(sum("gloo" in name for name in names)))
os._exit(0)
PY
for when in before after; do
    venv/bin/python -m torch.distributed.run --nproc_per_node=2 --master_port=0 --rdzv_backend=c10d \
        --rdzv_endpoint=localhost:0 group.py "$when" 2> errors.txt || { cat errors.txt; exit 1; }
    echo "$when: Gloo's threads in the two processes: $(cat "$when-0") and $(cat "$when-1")"
done
[ "$(cat before-0)" = 0 ] && [ "$(cat before-1)" = 0 ] || { echo "changed: threads are left although it came before"; exit 1; }
[ "$(cat after-0)" != 0 ] && [ "$(cat after-1)" != 0 ] || { echo "changed: the group is freed"; exit 1; }
