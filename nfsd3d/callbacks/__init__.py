"""What user code, loggers and the viewer learn of a training run, and how they steer it."""
