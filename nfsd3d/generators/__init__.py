"""The generators g(theta): a NeRF, latents or images. `register` adds one from outside the package."""

from nfsd3d.generators.plugins import GeneratorRow, RunFacts, register, unregister

__all__ = ["GeneratorRow", "RunFacts", "register", "unregister"]
