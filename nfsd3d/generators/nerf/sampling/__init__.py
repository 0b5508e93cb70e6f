"""Sampling along rays through the occupancy grid, one file per backend."""
