"""Generators g(theta): what is optimised, a hash-grid NeRF or a batch of images."""
