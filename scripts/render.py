"""Renders a run: ``python scripts/render.py RUN_DIR --views 8`` (see --help)."""

import sys

from nfsd3d.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["render", *sys.argv[1:]]))
