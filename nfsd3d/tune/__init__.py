"""Hyperparameter search by Optuna: trials whose runs are sets of jobs."""
