"""Measures runs against ground truth: ``evaluate.py RUN_DIR... | --suite FILE | --prior`` (see --help)."""

import sys

from nfsd3d.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
