"""Text to 3D by noise-free score distillation (2310.17590).

Importing the package is cheap: torch is imported when one of the names of `nfsd3d.api` is first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nfsd3d.api import Run, generate, load_run
    from nfsd3d.callbacks.callback import Callback

__all__ = ["Callback", "Run", "__version__", "generate", "load_run"]
__version__ = "0.2.0.dev0"

_LAZY = {
    **dict.fromkeys(("Run", "generate", "load_run"), "nfsd3d.api"),
    "Callback": "nfsd3d.callbacks.callback",
}
"""Names by the module that defines them."""


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'nfsd3d' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
