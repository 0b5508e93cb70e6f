"""Training: building a run's objects, the optimisation step, the training loop, and the results."""
