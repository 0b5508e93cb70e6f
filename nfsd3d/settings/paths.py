"""Paths as users write them."""

import os
import tempfile
from pathlib import Path


def user_path(path: str | Path) -> Path:
    """``path`` with ``~`` replaced by the home directory; as it is where there is no such user."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises RuntimeError for a user that does not exist


def user_cache() -> Path:
    """The folder of this program's caches; XDG_CACHE_HOME moves it. Without a home it is a temporary one."""
    base, home = os.environ.get("XDG_CACHE_HOME"), user_path("~")
    if base or home.is_absolute():
        return Path(base or home / ".cache") / "nfsd3d"
    return Path(tempfile.gettempdir()) / f"nfsd3d-cache-{os.getuid() if hasattr(os, 'getuid') else 0}"
