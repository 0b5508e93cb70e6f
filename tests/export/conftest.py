"""An analytic solid in place of a trained generator."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Ball:
    """A ball around the origin; density grows by ``steepness`` per world unit of depth, colours follow position."""

    radius: float = 0.5
    steepness: float = 2e4

    def density(self, positions: Tensor) -> Tensor:
        return torch.nn.functional.softplus(self.steepness * (self.radius - positions.norm(dim=-1)))

    def albedo(self, positions: Tensor) -> Tensor:
        return (positions / 2 + 0.5).clamp(0, 1)


@pytest.fixture
def ball() -> Ball:
    return Ball()
