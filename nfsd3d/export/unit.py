"""The unit in which libraries get a surface: their tolerances are plain numbers, not shares of its size."""

import numpy as np

from nfsd3d.generators.mesh.surface import FloatArray

HALF = 16.0
"""About half the longest side, in the libraries' unit (between 11.3 and 22.6: see :func:`factor`).

Measured with fast_simplification 0.2.0 on three surfaces of 160,000 to 230,000 triangles, of which half the longest
side is .6 to .8 in a world of radius 1: docs/benchmarks.md, "Meshes". With 64, 100 triangles are not reached any more.
"""

LIMIT = 120
"""The largest exponent of the factor: float32 ends at 127."""


def factor(vertices: FloatArray) -> float:
    """The power of two that makes half the longest side of ``vertices`` [V,3] about :data:`HALF`; exact both ways."""
    if len(vertices) == 0:
        return 1.0
    half = float(np.ptp(vertices.astype(np.float64), axis=0).max()) / 2
    if not 0 < half < np.inf:
        return 1.0
    return float(2.0 ** np.clip(np.round(np.log2(HALF / half)), -LIMIT, LIMIT))
