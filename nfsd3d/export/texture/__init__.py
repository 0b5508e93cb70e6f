"""Textures: UV unwrapping, rasterisation and baking."""
