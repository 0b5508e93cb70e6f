"""Engines that run jobs: processes of this machine, or one of joblib, submitit and Ray, one file each."""
