"""A textured triangle mesh as a generator, and its differentiable rasteriser."""
