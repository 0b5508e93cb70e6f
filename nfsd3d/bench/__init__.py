"""Measurements of speed: the kernels, a training step, and a prior of full size beside a common implementation."""
