"""Measures the score decomposition of NFSD, as tables, verdicts and pictures: ``scripts/decompose.py`` (see --help)."""

import sys

from nfsd3d.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["decompose", *sys.argv[1:]]))
