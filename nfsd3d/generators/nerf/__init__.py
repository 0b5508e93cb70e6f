"""The hash-grid NeRF: field, sampling along rays, volume rendering, and their kernels."""
