"""Multiresolution hash encoding (Instant-NGP, 2201.05989), one file per backend."""
