"""The optimisation of a run: building its parts, the step, the loop, checkpoints and the report."""
