"""Model files: locating, checking, converting and loading diffusers folders and single checkpoint files."""
