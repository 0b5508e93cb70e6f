"""Settings of the training cameras."""

from dataclasses import dataclass

from pydantic import NonNegativeFloat

from nfsd3d.settings.types import AzimuthRange, Degrees180, ElevationRange, FieldOfViewRange, Fraction, PositiveRange


@dataclass(frozen=True, kw_only=True)
class CameraRanges:
    """Ranges ``[low, high]`` from which training cameras are drawn uniformly."""

    distance: PositiveRange
    """Distance of the camera from the world's origin, in world units."""
    fovy_deg: FieldOfViewRange
    """Vertical field of view in degrees."""
    elevation_deg: ElevationRange
    """Elevation above the horizon in degrees."""
    azimuth_deg: AzimuthRange
    """Azimuth in degrees, from the object's front (+x) towards +y; spread evenly over the views of a step."""
    overhead_probability: Fraction
    """Probability that a camera takes its elevation from ``overhead_deg`` instead of ``elevation_deg``."""
    overhead_deg: ElevationRange
    """Elevation of overhead cameras in degrees."""
    target_jitter: NonNegativeFloat
    """Standard deviation of the look-at point around the origin, in world units; 0: the object stays centred."""
    light_jitter_deg: Degrees180
    """Half-angle in degrees of the cone around the camera in which the point light is placed; 0: at the camera."""
    light_distance: PositiveRange
    """Distance of the point light from the origin, in world units."""

    @property
    def middle(self) -> tuple[float, float]:
        """The mean distance in world units and the mean vertical field of view in degrees."""
        return sum(self.distance) / 2, sum(self.fovy_deg) / 2
