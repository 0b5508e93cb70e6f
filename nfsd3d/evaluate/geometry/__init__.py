"""Geometric scores: voxels of the ground truth and intersection over union."""
