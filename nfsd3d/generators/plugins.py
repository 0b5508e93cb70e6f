"""Generators from outside the package: what a row states, and the table that ``generator=NAME`` chooses from.

Importing this file does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nfsd3d.plugins.table import Table

if TYPE_CHECKING:
    from nfsd3d.generators.base import ImageGenerator

BUILTIN = ("nerf", "mesh", "latent", "image")


@dataclass(frozen=True)
class RunFacts:
    """What a generator is built for.

    ``views`` per step, ``resolution`` in pixels at the start, ``latent_shape`` (C, h, w) of the prior, ``seed`` of the
    run.
    """

    views: int
    resolution: int
    latent_shape: tuple[int, int, int]
    seed: int


@dataclass(frozen=True)
class GeneratorRow:
    """A generator from outside the package. Its results are images: it has no mesh and no turntable.

    Args:
        build: (options, facts of the run) -> the generator on the CPU; it draws from a random generator of its own,
            seeded with ``facts.seed``.
        learning_rates: by the names of its ``parameter_groups``; the settings ``generator.learning_rate``.
        options: settings ``generator.options`` with their defaults: numbers, texts, true or false, lists of these.
    """

    build: Callable[[Mapping[str, object], RunFacts], ImageGenerator]
    learning_rates: Mapping[str, float]
    options: Mapping[str, object] = field(default_factory=dict)


TABLE: Table[GeneratorRow] = Table("generator", "choice", "nfsd3d.generators", {}, GeneratorRow, reserved=BUILTIN)
"""Registered generators and those of installed packages; the built-in ones have settings of their own."""

register = TABLE.register
unregister = TABLE.unregister
