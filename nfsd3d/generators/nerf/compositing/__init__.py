"""Compositing of samples into pixels (volume rendering), one file per backend."""
