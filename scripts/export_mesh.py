"""Extracts the mesh of a run: ``python scripts/export_mesh.py RUN_DIR --formats glb,obj`` (see --help)."""

import sys

from nfsd3d.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
