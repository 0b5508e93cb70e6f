"""Measures the hash encoding and the parts of a training step: ``python scripts/bench.py`` (see --help)."""

import sys

from nfsd3d.bench_command import main
from nfsd3d.cli import guarded

if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
