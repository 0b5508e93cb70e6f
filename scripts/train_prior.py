"""Trains the embedded prior from scratch: ``python scripts/train_prior.py --out FOLDER`` (see --help)."""

import sys

from nfsd3d.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train-prior", *sys.argv[1:]]))
