#!/usr/bin/env bash
# Optuna 5.0.0 (and 4.9.0), JournalFileBackend: a journal whose last line has no end, as a full disk leaves it.
#
# Expected: such a line is ignored, or removed before the next entry is written.
# Seen: it is ignored until the next entry, which is appended to it; from then on the study cannot be loaded
# (JSONDecodeError). nfsd3d cuts such a line off when it opens a study.
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

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend


def study():
    storage = JournalStorage(JournalFileBackend(os.path.abspath("journal")))
    return optuna.create_study(storage=storage, study_name="x", load_if_exists=True)


optuna.logging.disable_default_handler()
study().ask()
with open("journal", "a") as stream:
    stream.write('{"op_code": 4, "wor')
print(len(study().trials), "trial before the next entry")
try:
    study().ask()
    study()
    print("loaded")
except ValueError as error:
    print(type(error).__name__)
PY
venv/bin/python journal.py | tee seen.txt

printf '%s\n' "1 trial before the next entry" JSONDecodeError > expected.txt
cmp expected.txt seen.txt
