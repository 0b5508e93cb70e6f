"""How a step is split so that it fits into memory."""

from dataclasses import dataclass, fields, replace

from nfsd3d.config.schema import ChunkSettings, MachineSettings

SMALLEST_PIXELS = 4096
"""Pixels at once below which nothing is gained: the rest of a step takes more memory than their samples."""


@dataclass(frozen=True)
class ChunkSizes(ChunkSettings):
    """Chunk sizes of a step; its results are equal up to floating-point summation order."""

    def smaller(self, views: int, resolution: int) -> "ChunkSizes | None":
        """The next smaller chunks of a step of ``views``, ``resolution`` pixels squared; None if these are the last.

        Half the pixels, one branch of the denoiser at a time and then half its rows, and a checkpointed encoder.
        """
        pixels = min(self.rays_per_chunk or views * resolution**2, views * resolution**2)
        smaller = replace(
            self,
            rays_per_chunk=self.rays_per_chunk if pixels <= SMALLEST_PIXELS else max(pixels // 2, SMALLEST_PIXELS),
            unet_batch_size=views if self.unet_batch_size is None else max(self.unet_batch_size // 2, 1),
            checkpoint_encoder=True,
        )
        return None if smaller == self else smaller

    def __str__(self) -> str:
        counts = {"pixels": self.rays_per_chunk, "rows of the prior": self.unet_batch_size}
        parts = [f"{count:,} {noun} at once" for noun, count in counts.items() if count is not None]
        return ", ".join([*parts, *(["checkpointed encoder"] if self.checkpoint_encoder else [])]) or "all at once"


def configured_chunks(machine: MachineSettings) -> ChunkSizes:
    """What a step computes at once, unless that does not fit into memory."""
    return ChunkSizes(**{field.name: getattr(machine, field.name) for field in fields(ChunkSettings)})
