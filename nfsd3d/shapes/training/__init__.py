"""Training of the embedded prior on the procedural world."""
