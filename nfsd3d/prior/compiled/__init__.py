"""Faster forms of the prior's networks: an encoder rewritten for torch.compile, and captured CUDA graphs."""
