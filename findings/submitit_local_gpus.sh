#!/usr/bin/env bash
# submitit 1.5.4, LocalExecutor: a job's CUDA_VISIBLE_DEVICES is overwritten by the numbers 0 to gpus_per_node - 1.
#
# Expected: a job of the local executor sees the GPUs that the process which submits it may use, and jobs that run at the
# same time with gpus_per_node=1 see different ones.
# Seen: without gpus_per_node the variable is empty, so that a job sees no GPU at all. With gpus_per_node=1 it is "0",
# although the submitting process has CUDA_VISIBLE_DEVICES=3,5 and may not use the machine's first GPU; and two jobs at
# the same time both have "0".
#
# Exits with 0 while this is so, with 1 when it has changed. Needs no GPU.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet submitit==1.5.4

cat > jobs.py <<'PY'
import os
import time

import submitit


def visible():
    time.sleep(2)  # both run at the same time
    return os.environ.get("CUDA_VISIBLE_DEVICES")


for parameters in ({}, {"gpus_per_node": 1}, {"gpus_per_node": 2}):
    executor = submitit.LocalExecutor("jobs")
    executor.update_parameters(timeout_min=1, **parameters)
    jobs = [executor.submit(visible) for _ in range(2)]
    print(parameters.get("gpus_per_node"), *[repr(job.result()) for job in jobs])
PY
CUDA_VISIBLE_DEVICES=3,5 venv/bin/python jobs.py | tee seen.txt

printf '%s\n' "None '' ''" "1 '0' '0'" "2 '0,1' '0,1'" > expected.txt
cmp expected.txt seen.txt
