"""Paths as users write them."""

import os
from pathlib import Path


def user_path(path: str | Path) -> Path:
    """``path`` with ``~`` replaced by the home directory; as it is where there is no such user."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises RuntimeError for a user that does not exist
