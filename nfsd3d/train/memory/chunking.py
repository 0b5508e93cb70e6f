"""Chunk sizes: how a step is split so that it fits into memory."""

from dataclasses import dataclass, fields, replace

from nfsd3d.settings.machine import ChunkSettings, MachineSettings

SMALLEST_PIXELS = 4096
"""Smaller chunks of rays save nothing: the rest of a step takes more memory than their samples."""


@dataclass(frozen=True)
class ChunkSizes(ChunkSettings):
    """Chunk sizes of a step; results are equal up to floating-point summation order."""

    def smaller(self, views: int, resolution: int) -> "ChunkSizes | None":
        """The next smaller chunks of a step with ``views`` of ``resolution`` pixels a side; None after the smallest.

        Half the rays; one prediction of the denoiser at a time, then half its batch; a checkpointed encoder.
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
        parts = [] if self.rays_per_chunk is None else [f"{self.rays_per_chunk:,} rays per chunk"]
        if self.unet_batch_size is not None:
            parts.append(f"{self.unet_batch_size} latent{'s' * (self.unet_batch_size > 1)} per batch")
        return ", ".join([*parts, *(["checkpointed encoder"] if self.checkpoint_encoder else [])]) or "one chunk"


def configured_chunks(machine: MachineSettings) -> ChunkSizes:
    """The chunk sizes of the configuration, which are made smaller where they do not fit."""
    return ChunkSizes(**{field.name: getattr(machine, field.name) for field in fields(ChunkSettings)})
