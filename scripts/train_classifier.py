"""Trains the classifier of ``evaluate``: ``python scripts/train_classifier.py`` (see --help)."""

import sys

from nfsd3d.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train-classifier", *sys.argv[1:]]))
