"""The former name of ``train_classifier.py``, kept until version 0.3."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    print("note: scripts/train_judge.py is now called scripts/train_classifier.py", file=sys.stderr)
    runpy.run_path(str(Path(__file__).with_name("train_classifier.py")), run_name="__main__")
