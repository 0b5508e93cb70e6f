"""Benchmarks: kernels, a training step, and a step with a full-size prior compared with a common implementation."""
