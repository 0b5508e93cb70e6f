"""Builds the generator of a run from its configuration, newly initialised."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from nfsd3d.config.schema import Config
from nfsd3d.generators.base import ImageGenerator, SceneGenerator
from nfsd3d.generators.images import ImageBatch
from nfsd3d.generators.mesh.mesh import TexturedMesh
from nfsd3d.generators.mesh.settings import MeshSettings
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.generators.nerf.settings import NeRFSettings
from nfsd3d.generators.plugins import TABLE as GENERATORS
from nfsd3d.generators.plugins import RunFacts
from nfsd3d.generators.settings import ImageSettings, LatentSettings, PluginGeneratorSettings
from nfsd3d.prior.base import Prior
from nfsd3d.settings.schedules import milestone_at


def build_generator(config: Config) -> SceneGenerator:
    """A newly initialised scene on the run's device: a NeRF, or a mesh that is empty until its source is loaded.

    Raises:
        InputError: a backend that is not installed.
    """
    if isinstance(config.generator, MeshSettings):
        with _seeded(config):
            mesh = TexturedMesh(config.generator, backend=config.backend.rasterizer, field_backend=config.backend.field)
        return mesh.to(config.machine.device)
    return build_nerf(config)


def build_nerf(config: Config) -> NeRF:
    """A newly initialised NeRF on the run's device.

    Raises:
        InputError: a backend that is not installed.
    """
    assert isinstance(config.generator, NeRFSettings)
    with _seeded(config):
        nerf = NeRF(
            config.generator,
            field_backend=config.backend.field,
            sampler_backend=config.backend.sampler,
            tensor_cores=config.machine.precision != "float32",
        )
    return nerf.to(config.machine.device)


@contextmanager
def _seeded(config: Config) -> Iterator[None]:
    """Initialisation uses torch's global RNG: within the block it is seeded, afterwards the caller's again."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        yield


def build_images(config: Config, prior: Prior) -> ImageGenerator:
    """A generator of images on the run's device: Gaussian noise as latents, or as pixels around mid-gray; or a
    plug-in's.

    Raises:
        InputError: a plug-in that is not installed.
    """
    if isinstance(config.generator, PluginGeneratorSettings):
        size = milestone_at(config.train.resolution, 0.0)
        facts = RunFacts(config.train.batch_size, size, prior.latent_shape, config.seed)
        built = GENERATORS.find(config.generator.type).build(config.generator.options, facts)
        return built.to(config.machine.device)
    assert isinstance(config.generator, LatentSettings | ImageSettings)
    kind, count = config.generator.type, config.train.batch_size
    # Not the seed of the run's RNG: its first noise would equal the image.
    noise = partial(torch.randn, generator=torch.Generator().manual_seed(config.seed ^ 0x5EED5))
    if kind == "latent":
        initial = config.generator.initial_std * noise(count, *prior.latent_shape)
    else:
        size = milestone_at(config.train.resolution, 0.0)
        initial = (0.5 + config.generator.initial_std * noise(count, 3, size, size)).clamp(0, 1)
    return ImageBatch(kind, initial).to(config.machine.device)
