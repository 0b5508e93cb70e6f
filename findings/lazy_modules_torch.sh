#!/usr/bin/env bash
# Python 3.11, torch 2.13.0 (CPU): importing torch's compiler executes every module behind importlib.util.LazyLoader.
#
# Expected: such a module is executed when one of its names is used, so that a costly import that nobody uses costs nothing.
# Seen: `import torch._dynamo` (which diffusers does, and torch's optimisers at their first use) registers operations, and
# torch.library notes where the fake implementation of each comes from; for that, inspect.getmodule asks every module in
# sys.modules for its __file__, and LazyLoader executes a module at the first read of any attribute. (nfsd3d defers
# scipy.stats with a module type of its own, which has its __file__ from the start.)
#
# Exits with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6

cat > costly.py <<'PY'
print("costly: executed")
PY
cat > lazy.py <<'PY'
import importlib.util
import sys

import torch

spec = importlib.util.find_spec("costly")
spec.loader = importlib.util.LazyLoader(spec.loader)
module = importlib.util.module_from_spec(spec)
sys.modules["costly"] = module
spec.loader.exec_module(module)
print("registered as", type(module).__name__)
sys.stdout.flush()
import torch._dynamo

print("done")
PY
venv/bin/python lazy.py > seen.txt
cat seen.txt
grep -q "registered as _LazyModule" seen.txt
grep -q "costly: executed" seen.txt || { echo "changed: the module was not executed"; exit 1; }
