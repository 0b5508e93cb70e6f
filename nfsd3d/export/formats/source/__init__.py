"""Reads a mesh file of the user's (GLB, OBJ, PLY, STL) as the source of a run: a file each format."""
