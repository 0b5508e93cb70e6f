"""Measures the kernels and the parts of a training step: ``python scripts/bench.py`` (see --help)."""

import sys

from nfsd3d.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
