"""Runs the notebooks of examples/ from their first cell to their last, each in a temporary folder.

    python scripts/run_notebooks.py [NOTEBOOK...] [--output FOLDER]

An error in a cell ends the program with its traceback. ``--output`` keeps the notebooks with what they showed.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Runs them; returns the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="(default: all of examples/)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write them there, with their outputs")
    options = parser.parse_args()
    failed = 0
    for path in options.notebooks or sorted((ROOT / "examples").glob("*.ipynb")):
        notebook, begin = nbformat.read(path, as_version=4), time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}})
            try:
                client.execute()
            except CellExecutionError as error:
                failed += 1
                print(error, file=sys.stderr)
        print(f"{path.name}: {time.monotonic() - begin:.0f} s", flush=True)
        if options.output is not None:
            options.output.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, options.output / path.name)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
