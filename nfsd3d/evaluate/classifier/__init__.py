"""The image classifier that scores results: its network, training, calibration and metrics."""
