"""Settings of view-dependent prompts."""

from dataclasses import dataclass
from typing import Literal

from nfsd3d.errors import InputError
from nfsd3d.settings.types import Degrees180, ElevationDeg


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """How the prompt depends on the camera."""

    view_dependent: bool
    """Append words for the camera's view to the prompt; reduces the Janus (multi-face) problem."""
    views: Literal["coarse", "fine"]
    """View words. coarse: front, side, back, overhead. fine: 8 directions at 3 heights, without front_deg, back_deg."""
    perp_neg: bool
    """Perp-Neg (2304.04968): push away from neighbouring views. With views=coarse also blends their embeddings."""
    front_deg: Degrees180
    """Largest azimuth in degrees, to either side of the front, that counts as the front view."""
    back_deg: Degrees180
    """Azimuth in degrees beyond which a view counts as the back view; between the two it is a side view."""
    overhead_deg: ElevationDeg
    """Elevation in degrees above which a view counts as overhead."""

    def __post_init__(self) -> None:
        if self.perp_neg and not self.view_dependent:
            raise InputError(
                "prompts.perp_neg=true: moves away from view words, which prompts.view_dependent=false leaves out; set "
                "prompts.view_dependent=true, or prompts.perp_neg=false"
            )
        if self.front_deg > self.back_deg:
            raise InputError("prompts: front_deg must not exceed back_deg")
