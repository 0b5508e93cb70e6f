"""The predicted peak memory of a run's steps, and the chunk sizes with which it stays below a limit."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from math import inf

import torch
from torch import Tensor

from nfsd3d.config.schema import Config
from nfsd3d.distill.methods import Method
from nfsd3d.generators.base import Generator
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.prior.architectures import ARCHITECTURES, random_prior
from nfsd3d.prior.diffusers_prior import DiffusersPrior
from nfsd3d.prior.families.full_size import FULL_SIZES, full_size_prior
from nfsd3d.prior.families.table import FAMILIES, PRESETS
from nfsd3d.settings.schedules import highest
from nfsd3d.train.build import PRECISIONS, Parts, build_lora, find_method
from nfsd3d.train.build_generator import build_generator
from nfsd3d.train.compilation import compiles_encoder, compiles_unet
from nfsd3d.train.memory.chunking import ChunkSizes, configured_chunks
from nfsd3d.train.memory.footprint import SampleBytes, network_peak, sample_bytes, samples_at_most

GIB = 2**30
RESERVE = GIB // 2
"""Bytes reserved for libraries (workspaces, code) and for fragmentation."""


@dataclass(frozen=True)
class Budget:
    """Peak bytes of a run's steps.

    ``weights`` of the prior's networks; ``scene``: parameters, gradients and optimiser moments of the generator and
    of VSD's LoRA network; ``samples``: at most ``sample_count`` of them along the rays of all views; ``networks``:
    activations of encoder and UNet; ``graphs``: activations in captured CUDA graphs, whose memory pools are never
    shared. ``resolution`` is that of the largest views.
    """

    weights: int
    scene: int
    samples: int
    networks: int
    sample_count: int
    resolution: int
    graphs: int = 0

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.scene + self.samples + self.networks + self.graphs

    @property
    def remedy(self) -> str:
        """The settings to change, those of the largest part."""
        parts = {
            "set machine.rays_per_chunk=16384, or lower generator.max_samples or train.resolution": self.samples,
            "set machine.unet_batch_size=1, machine.checkpoint_encoder=true, or a lower train.batch_size": self.networks
            + self.graphs,
            "choose a smaller prior": self.weights,
            "lower generator.encoding.log2_entries": self.scene,
        }
        return max(parts, key=lambda text: parts[text])

    def __str__(self) -> str:
        parts = {
            "the prior's weights": self.weights,
            "scene and optimiser": self.scene,
            f"{self.sample_count:,} samples (generator.max_samples caps them)": self.samples,
            "encoder and UNet": self.networks,
            "CUDA graphs of encoder and UNet": self.graphs,
        }
        listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)
        return f"{self.total / GIB:.2f} GB at views of {self.resolution} pixels: {listed}"


class Estimator:
    """Predicts the memory of a run's steps with any chunk sizes; it uses none of the run's random numbers.

    ``weights``, ``scene``, ``resolution`` and ``sample_count`` as in :class:`Budget`.
    """

    def __init__(self, prior: DiffusersPrior, generator: Generator, method: Method, config: Config) -> None:
        self._prior, self._method, self._config = prior.without_weights(), method, config
        self._lora = build_lora(config, self._prior) if method.needs_lora else None
        self._peak = cache(network_peak)
        train = config.train
        self.views, self.resolution = train.batch_size, int(highest(train.resolution))
        self._unet_batch_size = max(method.batch_sizes(self.views, perp_neg=config.prompts.perp_neg))
        optimized = [value for group in generator.parameter_groups().values() for value in group]
        further = self._lora.state_dict().values() if self._lora is not None else []
        self.weights = _size_of(prior.tensors())
        self.scene = 4 * _size_of([*optimized, *further])  # a parameter, its gradient and two moments
        self.sample_count, self.sample_bytes = 0, SampleBytes(0, 0, 0)
        if isinstance(generator, NeRF):
            if generator.settings.encoding.precision == "float16":  # a copy of the tables
                self.scene += _size_of(generator.field.encoding.parameters()) // 2
            normals = any(highest(schedule) > 0 for schedule in (train.regularizers.orient, train.shading.lambertian))
            self.sample_count = samples_at_most(generator, self.views, self.resolution)
            self.sample_bytes = sample_bytes(generator, config.cameras, normals=normals)

    def networks(self, chunks: ChunkSizes) -> int:
        """Bytes of the activations of encoder and UNet outside of CUDA graphs."""
        entries = 0 if compiles_unet(self._config, self._method) else self._unet_batch_size
        encodes = not compiles_encoder(self._config, chunks)
        return self._peak(self._prior, chunks, self.views, entries, self._lora, encodes=encodes)

    def graphs(self, chunks: ChunkSizes) -> int:
        """Bytes of the activations in captured CUDA graphs of encoder and UNet."""
        unet = compiles_unet(self._config, self._method)
        size = self._peak(self._prior, chunks, self.views, self._unet_batch_size, encodes=False) if unet else 0
        if compiles_encoder(self._config, chunks):
            uses = (True, False) if self._method.needs_source else (True,)  # a source is encoded without gradient
            size += sum(self._peak(self._prior, ChunkSizes(), self.views, 0, gradient=gradient) for gradient in uses)
        return size

    def budget(self, chunks: ChunkSizes) -> Budget:
        """The peak of a step: while the prior's networks run, or in the backward pass of the rendering."""
        pixels, size = self.views * self.resolution**2, self.sample_bytes
        share = min(1.0, (chunks.rays_per_chunk or pixels) / pixels)
        kept = self.sample_count * (size.packed + (size.kept if share == 1.0 else 0.0))
        peak = self.sample_count * (size.packed + size.peak * share)
        unsplit = replace(chunks, rays_per_chunk=None)  # the networks' memory does not depend on the rays of a chunk
        networks, graphs = self.networks(unsplit), self.graphs(unsplit)
        samples, activations = (kept, networks) if kept + networks > peak else (peak, 0)
        return Budget(self.weights, self.scene, int(samples), activations, self.sample_count, self.resolution, graphs)

    def fitted(self, chunks: ChunkSizes, limit: float) -> tuple[ChunkSizes, Budget]:
        """The first of ``chunks`` and ever smaller ones that takes at most ``limit`` bytes; else the smallest."""
        budget = self.budget(chunks)
        while budget.total > limit and (smaller := chunks.smaller(self.views, self.resolution)):
            chunks, budget = smaller, self.budget(smaller)
        return chunks, budget


def fit_into_memory(config: Config, parts: Parts, chunks: ChunkSizes, log: Callable[[str], None]) -> ChunkSizes:
    """``chunks``, or smaller ones whose predicted memory fits into the free GPU memory and ``machine.memory_gb``.

    ``log`` gets the prediction, and the setting to lower where the smallest chunks do not fit. There is no prediction
    for a prior that is not in a layout of diffusers, or whose denoiser reads values of its input.
    """
    if not isinstance(parts.prior, DiffusersPrior):
        return chunks
    family = parts.prior.family
    if not family.traceable:
        log(f"memory: not predicted for a {family.title} model; a step that does not fit is repeated in smaller chunks")
        return chunks
    available, allowed = available_bytes(parts.generator.device), config.machine.memory_gb
    limit = min(available, (allowed or inf) * GIB)
    allowance = f"{available / GIB:.2f} GB free" if limit == available else f"machine.memory_gb={allowed:g}"
    estimator = Estimator(parts.prior, parts.generator, parts.distillation.method, config)
    fitting, budget = estimator.fitted(chunks, limit)
    log(f"memory, predicted: {budget}")
    if fitting != chunks:
        log(f"memory: {fitting}, to fit into {allowance}; the results are the same")
    if budget.total > limit:
        log(f"warning: the prediction is above {allowance}: {budget.remedy}")
    return fitting


def available_bytes(device: torch.device) -> int:
    """Bytes that this process's tensors may use on a GPU, including those in use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - RESERVE


def predicted(config: Config) -> str | None:
    """The predicted memory of a run with a preset prior, without loading it; None where there is no prediction."""
    name, dtype = config.prior.name, PRECISIONS[config.machine.precision]
    if config.prior.model is not None or config.prior.vae is not None or config.makes_images:
        return None
    if name in ARCHITECTURES:
        prior = random_prior(name, "meta", dtype, image_size=config.prior.image_size)
        prior.free_text_encoder()
    elif name in FULL_SIZES and FAMILIES[PRESETS[name].family].traceable:
        prior = full_size_prior(name, config.prior.image_size, dtype)
    else:
        return None
    estimator = Estimator(prior, build_generator(config), find_method(config.distill.method), config)
    return str(estimator.fitted(configured_chunks(config.machine), (config.machine.memory_gb or inf) * GIB)[1])


def _size_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
