"""Settings of a distillation method."""

from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from nfsd3d.settings.types import Fraction, Name, WeightSchedule


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """How noise predictions become a gradient on the latents."""

    method: Name
    """Name of a row of `nfsd3d.distill.methods.METHODS`; ``dds`` edits a source, the others generate."""
    guidance_scale: WeightSchedule
    """s in ``eps_uncond + s * (eps_cond - eps_uncond)``; more follows the prompt more and oversaturates."""
    guidance_factor: WeightSchedule = 1.0
    """Factor on guidance_scale, from the recipe; it falls because high guidance thickens geometry and oversaturates."""
    weighting: Literal["sigma2", "uniform", "sigma_over_alpha", "sigma_alpha", "velocity"]
    """Weight w(t) of a timestep's gradient; ``sigma2`` is 1 - alpha_bar, the usual one."""
    threshold: Fraction = 0.2
    """NFSD: fraction of the prior's timesteps below which delta_D is eps_uncond (the paper: 200 of 1000; 1: at all)."""
    lora_rank: PositiveInt = 4
    """VSD: rank of the LoRA network; more fits the renders better, at more memory."""
    lora_learning_rate: PositiveFloat = 1e-4
    """VSD: learning rate of the LoRA network."""
    camera_dropout: Fraction = 0.1
    """VSD: probability that a training step of the LoRA network omits the camera condition."""
    eta: WeightSchedule = 0.0
    """DVRF: how far noised latents are moved away from the source's; 0 is DDS, which is pulled back to the source."""
    better_suffix: str = ", detailed high resolution, high quality, sharp"
    """Bridge: suffix of the target prompt, used in the second half of training."""
    worse_suffix: str = (
        ", oversaturated, smooth, pixelated, cartoon, foggy, hazy, blurry, bad structure, noisy, malformed"
    )
    """Bridge: suffix of the source (negative) prompt, used in the second half of training."""
