#!/usr/bin/env bash
# Optuna 5.0.0 (and 4.9.0), JournalFileBackend: two ways in which the journal of a study stays unusable.
#
# 1. Lock. Expected: the lock of a process that was killed while it wrote is released after the grace period.
#    Seen: with a relative path in another folder it never is. The lock is a symbolic link with the path as its text,
#    which is then read from the link's own folder and leads nowhere. os.stat fails, and the loop begins again without
#    its check of the grace period and without a pause, so that it keeps a processor core busy. nfsd3d gives an absolute
#    path.
# 2. A line without an end, as a full disk leaves. Expected: it is ignored or removed. Seen: it is ignored until the next
#    entry, which is appended to it; from then on the study cannot be loaded. nfsd3d cuts it off when it opens a study.
#
# Exits with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet optuna==5.0.0

cat > journal.py <<'PY'
import os
import signal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock


def lock(path):
    JournalFileSymlinkLock(path).acquire()  # by a process that is killed now
    signal.alarm(20)
    try:
        JournalFileSymlinkLock(path, grace_period=3).acquire()
        return "released"
    except TimeoutError:
        return "never released"
    finally:
        signal.alarm(0)


def late(*_):
    raise TimeoutError


def study(path):
    storage = JournalStorage(JournalFileBackend(path))
    return optuna.create_study(storage=storage, study_name="x", load_if_exists=True)


optuna.logging.disable_default_handler()
signal.signal(signal.SIGALRM, late)
for folder in ("a", "b"):
    os.mkdir(folder)
    open(f"{folder}/journal", "w").close()
print(lock(os.path.abspath("a/journal")))
print(lock("b/journal"))

path = os.path.abspath("torn")
study(path).ask()
with open(path, "a") as stream:
    stream.write('{"op_code": 4, "wor')
try:
    study(path).ask()
    study(path)
    print("loaded")
except ValueError as error:
    print(type(error).__name__)
PY
venv/bin/python journal.py | tee seen.txt

printf '%s\n' released "never released" JSONDecodeError > expected.txt
cmp expected.txt seen.txt
