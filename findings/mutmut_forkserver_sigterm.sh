#!/usr/bin/env bash
# mutmut 3.8.1 with process_isolation = "forkserver": a test whose process is told to end by SIGTERM, and hands the signal
# on to the handler that was there before, as a program does that saves its state first, makes mutants survive.
#
# Expected: the processes that run the tests of a mutant have the default handler of SIGTERM, as under pytest, and as with
# process_isolation = "fork".
# Seen: they inherit the handler of mutmut's server, which ends the process with exit code 0 before the assertion: mutmut
# counts the mutant as one that no test has noticed. With "fork" the same tests kill it. (nfsd3d's tests restore the
# default handler in pytest_sessionstart.)
#
# Exits with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet mutmut==3.8.1 pytest
mkdir program tests
touch program/__init__.py

cat > program/sums.py <<'PY'
def total(first, second):
    return first + second
PY

cat > tests/test_sums.py <<'PY'
import os
import signal

from program.sums import total


def test_a_sum_after_a_signal_that_was_handed_on():
    former, got = signal.getsignal(signal.SIGTERM), []
    signal.signal(signal.SIGTERM, lambda signum, frame: got.append(signum))
    os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, former)
    if callable(former):
        former(got[0], None)
    assert total(2, 3) == 5
PY

for isolation in fork forkserver; do
  cat > pyproject.toml <<TOML
[tool.mutmut]
source_paths = ["program"]
pytest_add_cli_args_test_selection = ["tests"]
process_isolation = "$isolation"
TOML
  rm -rf mutants
  PYTHONPATH=. venv/bin/mutmut run >log.txt 2>&1 || { cat log.txt; exit 1; }
  venv/bin/mutmut results --all true | sed "s/^ */$isolation: /"
done | tee seen.txt

cat > expected.txt <<'TXT'
fork: program.sums.x_total__mutmut_1: killed
forkserver: program.sums.x_total__mutmut_1: survived
TXT
cmp expected.txt seen.txt
