"""Mesh file formats: a file each, and the table of them."""
