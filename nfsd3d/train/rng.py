"""Random streams: draws whose number differs from run to run get one of their own."""

import torch


def fork(rng: torch.Generator) -> torch.Generator:
    """A new generator on the CPU, seeded by one draw from ``rng``.

    However much is drawn from it, ``rng`` goes on the same: runs of one seed see the same cameras, timesteps and noise
    whatever their method draws besides (common random numbers). A checkpoint that keeps ``rng`` keeps its forks.
    """
    return torch.Generator().manual_seed(int(torch.randint(2**63 - 1, (), generator=rng)))
