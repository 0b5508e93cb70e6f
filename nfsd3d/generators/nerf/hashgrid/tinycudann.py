"""The hash encoding of tiny-cuda-nn (the only file that imports tinycudann)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfsd3d.errors import InputError
from nfsd3d.generators.nerf.settings import HashGridSpec


class TcnnHashEncoding(nn.Module):
    """tiny-cuda-nn's hash grid in float32: the same family of encodings, not the same numbers.

    Its grid of level l has ceil(base * growth^l - 1) cells, shifted by half a cell, and its own order of entries, so
    that checkpoints do not move between this and the other backends.
    """

    def __init__(self, spec: HashGridSpec) -> None:
        super().__init__()
        try:
            import tinycudann
        except (ImportError, OSError) as error:
            raise InputError(
                f"backend.field=tcnn: tinycudann cannot be used ({error}); install tiny-cuda-nn's torch bindings, "
                "or choose backend.field=torch"
            ) from error
        self.width = spec.width
        self.grid = tinycudann.Encoding(
            n_input_dims=3,
            encoding_config={
                "otype": "HashGrid",
                "n_levels": spec.levels,
                "n_features_per_level": spec.features,
                "log2_hashmap_size": spec.log2_entries,
                "base_resolution": spec.base_resolution,
                "per_level_scale": spec.growth,
            },
            dtype=torch.float32,
        )

    def forward(self, positions: Tensor) -> Tensor:
        """[N, levels * features] for positions [N,3] in [0,1] on a CUDA device."""
        if not len(positions):
            # tiny-cuda-nn would leave the gradient of its tables unwritten, whatever lies there in memory.
            return self.grid(F.pad(positions, (0, 0, 0, 1)))[:0]
        return self.grid(positions)
