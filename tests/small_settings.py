"""Settings of components for tests without a configuration; vary them with `replace`."""

from nfsd3d.distill.settings import DistillSettings
from nfsd3d.generators.nerf.hashgrid.spec import HashGridSpec
from nfsd3d.generators.nerf.settings import NeRFSettings
from nfsd3d.settings.cameras import CameraRanges
from nfsd3d.settings.export import ExportSettings
from nfsd3d.settings.prompts import PromptSettings

HASH_GRID = HashGridSpec(levels=8, features=2, log2_entries=15, base_resolution=8, growth=1.5)
NERF = NeRFSettings(
    radius=1.0,
    encoding=HASH_GRID,
    hidden_width=64,
    hidden_layers=1,
    density_blob_scale=10.0,
    density_blob_std=0.5,
    background="learned",
    occupancy_resolution=48,
    occupancy_interval=16,
    occupancy_decay=0.95,
    occupancy_warmup=256,
    alpha_threshold=0.01,
    samples_per_ray=64,
    max_samples=2**20,
    normals="finite_difference",
    finite_difference_eps=0.01,
)
CAMERAS = CameraRanges(
    distance=(2.2, 2.8),
    fovy_deg=(40.0, 50.0),
    elevation_deg=(-10.0, 60.0),
    azimuth_deg=(-180.0, 180.0),
    overhead_probability=0.0,
    overhead_deg=(60.0, 85.0),
    target_jitter=0.0,
    light_jitter_deg=60.0,
    light_distance=(3.0, 5.0),
)
PROMPTS = PromptSettings(
    view_dependent=True, views="coarse", perp_neg=False, front_deg=45.0, back_deg=135.0, overhead_deg=60.0
)
DISTILL = DistillSettings(method="nfsd", guidance_scale=7.5, weighting="sigma2")
EXPORT = ExportSettings(
    mesh=True,
    formats=["glb"],
    resolution=80,
    threshold="auto",
    max_faces=10**6,
    texture_size=0,
    turntable=False,
    turntable_frames=8,
    turntable_size=16,
    report=False,
)
