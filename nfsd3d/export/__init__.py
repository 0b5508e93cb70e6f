"""From a generator to files: surface, simplification, mesh formats, pictures and video."""
