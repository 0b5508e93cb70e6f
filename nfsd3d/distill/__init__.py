"""Score distillation: noise predictions of a prior become one gradient on the latents.

Knows neither the generator, nor the renderer, nor any model. `register` adds a method from outside the package.
"""

from nfsd3d.distill.methods import Method, from_threshold, register, unregister
from nfsd3d.distill.types import Predictions

__all__ = ["Method", "Predictions", "from_threshold", "register", "unregister"]
