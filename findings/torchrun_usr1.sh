#!/usr/bin/env bash
# torchrun of torch 2.13.0: SIGUSR1, which SLURM sends before a time limit where it is asked to, ends torchrun at once, and
# its workers run on without it.
#
# Expected: torchrun passes the signal on to its workers, as it does with SIGTERM, or ends them.
# Seen: SIGTERM reaches the workers. SIGUSR1 ends torchrun with that signal, and the workers get none and run on; they
# are told neither by a signal nor by an error. (nfsd3d's workers look whether torchrun lives, and stop as after SIGTERM.)
#
# Exits with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0

cat > worker.py <<'PY'
import os
import signal
import sys
import time

rank = os.environ["RANK"]


def got(signum, frame):
    with open(f"signal-{rank}", "w") as file:
        file.write(signal.Signals(signum).name)
    sys.exit(0)


for signum in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(signum, got)
open(f"pid-{rank}", "w").write(str(os.getpid()))
time.sleep(300)
PY

cat > test.py <<'PY'
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "worker.py"]
for name in ("SIGTERM", "SIGUSR1"):
    for old in [*Path().glob("pid-*"), *Path().glob("signal-*")]:
        old.unlink()
    torchrun = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not all(Path(f"pid-{rank}").is_file() and Path(f"pid-{rank}").read_text() for rank in (0, 1)):
        time.sleep(0.1)
    pids = [int(Path(f"pid-{rank}").read_text()) for rank in (0, 1)]
    torchrun.send_signal(getattr(signal, name))
    code = torchrun.wait(60)
    time.sleep(3)
    told = [path.read_text() for path in sorted(Path().glob("signal-*"))]
    running = [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    print(name, "exit code", code, "workers told", told, "running", len(running))
    for pid in running:
        os.kill(pid, signal.SIGKILL)
PY
venv/bin/python test.py | tee seen.txt

cat > expected.txt <<'TXT'
SIGTERM exit code 1 workers told ['SIGTERM', 'SIGTERM'] running 0
SIGUSR1 exit code -10 workers told [] running 2
TXT
cmp expected.txt seen.txt
