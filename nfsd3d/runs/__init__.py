"""Run directories: checks before a run, its files, checkpoints, metrics and summary."""
