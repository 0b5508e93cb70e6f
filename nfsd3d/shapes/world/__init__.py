"""The procedural world: objects, scenes, captions and their exact renders."""
