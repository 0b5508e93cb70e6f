"""Measuring results against ground truth: what an image shows, how true a shape is, how good the prior itself is."""
