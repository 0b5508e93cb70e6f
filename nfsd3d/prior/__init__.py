"""The prior: a pretrained, frozen text-to-image diffusion model behind one protocol (`nfsd3d.prior.base.Prior`).

`register` adds a prior from outside the package.
"""

from nfsd3d.prior.priors import PriorRow, register, unregister

__all__ = ["PriorRow", "register", "unregister"]
