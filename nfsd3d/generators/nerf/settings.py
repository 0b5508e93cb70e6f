"""Settings of the hash-grid NeRF."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from nfsd3d.generators.nerf.hashgrid.spec import HashGridSpec


@dataclass(frozen=True, kw_only=True)
class NeRFSettings:
    """Sizes and constants of a NeRF in the cube [-radius, radius]^3."""

    type: Literal["nerf"] = "nerf"
    """Kind of generator."""
    radius: PositiveFloat
    """Half-width of the cube that holds the object, in world units."""
    encoding: HashGridSpec
    """Hash encoding of positions."""
    hidden_width: Annotated[int, Field(ge=1, le=1024)]
    """Neurons per hidden layer of the field's MLP."""
    hidden_layers: Annotated[int, Field(ge=1, le=8)]
    """Hidden layers of the field's MLP."""
    density_blob_scale: NonNegativeFloat
    """Height of the initial density blob at the origin, before the softplus; 0: starts from an empty scene."""
    density_blob_std: PositiveFloat
    """Radius in world units at which the initial blob falls to 0; larger starts from a bigger object."""
    background: Literal["learned", "color"]
    """Background behind the object. learned: a small network of the direction. color: plain white."""
    occupancy_resolution: Annotated[int, Field(ge=2, le=512)]
    """Cells per axis of the occupancy grid, in which rays skip empty space."""
    occupancy_interval: PositiveInt
    """Steps between updates of the occupancy grid."""
    occupancy_decay: Annotated[float, Field(gt=0, le=1)]
    """Factor on the stored density of each cell at an update; smaller forgets removed density sooner."""
    occupancy_warmup: Annotated[int, Field(ge=0)]
    """Steps in which an update evaluates all cells; later updates evaluate a random part."""
    alpha_threshold: Annotated[float, Field(ge=0, lt=1)]
    """Opacity of one sample below which a grid cell counts as empty; more is faster but drops faint density."""
    samples_per_ray: Annotated[int, Field(ge=2, le=4096)]
    """Samples along the cube's diagonal, which sets the step length; more is finer, at proportional time and memory."""
    max_samples: Annotated[int, Field(ge=1024)]
    """Largest number of samples in one rendering (memory); a fuller scene is rendered with longer steps."""
    prune_alpha: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Opacity below which a sample is dropped, as occluded ones are, once the field is evaluated there; 0: keep all."""
    normals: Literal["analytic", "finite_difference"]
    """Normals from the density: analytic (exact, without gradient) or finite_difference (differentiable)."""
    finite_difference_eps: PositiveFloat
    """Half-step of finite-difference normals in world units; larger is smoother."""
