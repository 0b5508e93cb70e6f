"""The prior: a pretrained, frozen text-to-image diffusion model behind one protocol (`nfsd3d.prior.base.Prior`)."""
