"""The former name of ``train_classifier.py``, kept until version 0.3."""

import sys

from nfsd3d.__main__ import main

if __name__ == "__main__":
    print("note: scripts/train_judge.py is now called scripts/train_classifier.py", file=sys.stderr)
    sys.exit(main(["train-classifier", *sys.argv[1:]]))
