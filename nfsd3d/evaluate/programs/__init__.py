"""Opens exported meshes in other programs: their size, the way up and the colours there."""
