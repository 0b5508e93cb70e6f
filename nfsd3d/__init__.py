"""Text to 3D by noise-free score distillation (2310.17590).

Importing the package is cheap: torch is imported when the first of the names below is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nfsd3d.api import Run, generate, load_run

__all__ = ["Run", "__version__", "generate", "load_run"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in ("Run", "generate", "load_run"):
        raise AttributeError(f"module 'nfsd3d' has no attribute {name!r}")
    from nfsd3d import api

    return getattr(api, name)
