"""Compares methods: ``compare.py --tier NAME`` (see --help)."""

import sys

from nfsd3d.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
