"""Evaluation against ground truth: image classification, geometry (IoU), sharpness, and the quality of the prior."""
