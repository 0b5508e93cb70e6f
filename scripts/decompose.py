"""Measures the score decomposition of NFSD, as tables, conclusions and plots: ``scripts/decompose.py`` (see --help)."""

import sys

from nfsd3d.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["decompose", *sys.argv[1:]]))
