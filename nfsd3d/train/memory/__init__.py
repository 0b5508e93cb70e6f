"""GPU memory of a training step: its prediction, and the chunk sizes that keep it within a limit."""
