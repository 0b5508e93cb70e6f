"""How a step is split so that it fits into memory."""

from dataclasses import dataclass, replace

from nfsd3d.config.schema import MachineConfig

SMALLEST_PIXELS = 4096
"""Pixels at once below which nothing is gained: the rest of a step takes more memory than their samples."""


@dataclass(frozen=True)
class Pieces:
    """What a step computes at once; its numbers depend on it no further than by the order of additions.

    ``pixels_at_once`` of the views are rendered together, and rendered again, as many at a time, in the backward pass;
    the prior's networks see ``rows_at_once`` latents or images together; None is all. With ``checkpoint_encoder`` the
    encoder computes the activations of each of its blocks again in the backward pass instead of keeping them.
    """

    pixels_at_once: int | None = None
    rows_at_once: int | None = None
    checkpoint_encoder: bool = False

    def smaller(self, views: int, resolution: int) -> "Pieces | None":
        """The next smaller pieces of a step of ``views``, ``resolution`` pixels squared; None if these are the last.

        Half the pixels, one branch of the denoiser at a time and then half its rows, and a checkpointed encoder.
        """
        pixels = min(self.pixels_at_once or views * resolution**2, views * resolution**2)
        smaller = replace(
            self,
            pixels_at_once=self.pixels_at_once if pixels <= SMALLEST_PIXELS else max(pixels // 2, SMALLEST_PIXELS),
            rows_at_once=views if self.rows_at_once is None else max(self.rows_at_once // 2, 1),
            checkpoint_encoder=True,
        )
        return None if smaller == self else smaller

    def __str__(self) -> str:
        counts = {"pixels": self.pixels_at_once, "rows of the prior": self.rows_at_once}
        parts = [f"{count:,} {noun} at once" for noun, count in counts.items() if count is not None]
        return ", ".join([*parts, *(["checkpointed encoder"] if self.checkpoint_encoder else [])]) or "all at once"


def configured_pieces(machine: MachineConfig) -> Pieces:
    """What a step computes at once, unless that does not fit into memory."""
    return Pieces(machine.pixels_at_once, machine.rows_at_once, machine.checkpoint_encoder)
