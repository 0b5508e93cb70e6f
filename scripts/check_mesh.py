"""Compares an exported mesh with the NeRF's views: ``python scripts/check_mesh.py RUN_DIR`` (see --help)."""

import sys

from nfsd3d.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["check-mesh", *sys.argv[1:]]))
