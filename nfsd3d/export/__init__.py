"""Mesh export: level set, marching cubes, simplification, texture and mesh file formats."""
