"""Cameras, and the prompts that depend on them."""
