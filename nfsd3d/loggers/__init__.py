"""Where a run's numbers and images go besides its own directory: TensorBoard, W&B, MLflow."""
