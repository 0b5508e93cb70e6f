"""Benchmarks of the NeRF's kernels: the speed of each implementation, checked against the reference."""

import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from nfsd3d.bench.clock import now
from nfsd3d.config.hardware import is_installed, triton_obstacle
from nfsd3d.generators.nerf.compositing.compositing import composite, render_weights
from nfsd3d.generators.nerf.field import FusedNetwork, HashGridField, fused_network
from nfsd3d.generators.nerf.hashgrid.encoding import HashEncoding, hash_encoding
from nfsd3d.generators.nerf.hashgrid.layout import Layout
from nfsd3d.generators.nerf.hashgrid.spec import HashGridSpec
from nfsd3d.generators.nerf.hashgrid.torch_reference import corners, interpolate
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.generators.nerf.occupancy import OccupancyGrid
from nfsd3d.generators.nerf.sampling.nerfacc import nerfacc_obstacle
from nfsd3d.generators.nerf.sampling.sampling import RaySamples, sample_rays
from nfsd3d.settings.cameras import CameraRanges
from nfsd3d.views.cameras import Rays, sample_cameras

FAST = {"cpu": "numba", "cuda": "triton"}
"""The implementation with which others are compared, by type of device."""
TOLERANCE = 1e-4
# As TOLERANCE, of tables of unit scale that are read in float16.
ROUNDED = 1e-3
HALF = "triton, float16 table"
"""The largest relative difference (in the norm) of an implementation from the reference."""
KINKS = 5e-2
"""The same for products in TF32: where a hidden unit's sign changes, so does all of its gradient."""
SHIFTED = 1e-2
"""The same for the numbers of samples per ray: one sample across a cell's border changes its ray's by one."""
CALLS = {"cpu": 1, "cuda": 20}
"""Calls of a kernel per measurement, so that a GPU always has work queued."""


@dataclass(frozen=True)
class Contender:
    """One implementation of a kernel, on its input.

    ``forward`` computes without gradient; ``training``, where the kernel has one, forward and backward. Both return the
    tensors to compare with the first contender's, within ``tolerance`` of their norm; None: no comparison.
    """

    forward: Callable[[], Tensor]
    training: Callable[[], Tensor] | None = None
    tolerance: float | None = TOLERANCE


@dataclass(frozen=True)
class KernelTiming:
    """Milliseconds of one implementation of a kernel, the fastest of all rounds.

    ``forward`` without gradient; ``training`` forward and backward, None for a kernel without gradient.
    ``forward_ratio`` and ``training_ratio``: the time divided by that of the device's FAST one.
    """

    name: str
    forward: float
    training: float | None
    forward_ratio: float
    training_ratio: float | None


@dataclass(frozen=True)
class Scene:
    """The R rays and S samples of a generator's first training step."""

    rays: Rays
    occupancy: OccupancyGrid
    step_size: float
    max_samples: int
    samples: RaySamples
    positions: Tensor
    """[S,3] of the samples in the unit cube."""
    density: Tensor
    """[S] in 1/world unit."""


def demo_scene(nerf: NeRF, ranges: CameraRanges, views: int, resolution: int) -> Scene:
    """The rays of an initial training step's views, and their samples."""
    rng = torch.Generator().manual_seed(0)
    nerf.update(0, rng)
    rays = sample_cameras(rng, views, resolution, ranges).to(nerf.device).rays()
    samples = sample_rays(
        rays,
        nerf.occupancy,
        step_size=nerf.step_size,
        max_samples=nerf.settings.max_samples,
        jitter=rng,
        backend=nerf.sampler_backend,
    )
    positions = samples.positions(rays)
    return Scene(
        rays,
        nerf.occupancy,
        nerf.step_size,
        nerf.settings.max_samples,
        samples,
        positions / (2 * nerf.settings.radius) + 0.5,
        nerf.density(positions),
    )


def encodings(spec: HashGridSpec, device: torch.device, *, compiled: bool) -> dict[str, nn.Module]:
    """The implementations of the encoding on ``device``, all with the same table except tiny-cuda-nn's.

    With ``compiled``, on a CPU, also torch.compile's versions (Inductor): of the reference, and of an equivalent
    gather, which Inductor fuses better.
    """
    spec = replace(spec, precision="float32")
    reference = hash_encoding(spec, "torch")
    assert isinstance(reference, HashEncoding)
    found: dict[str, nn.Module] = {"embedding_bag": reference}
    if compiled and device.type == "cpu":
        found["embedding_bag, torch.compile"] = HashEncoding(spec, torch.compile(interpolate))
        found["gather, torch.compile"] = HashEncoding(spec, torch.compile(_gather))
    for name in _fast(device.type):
        found[name] = hash_encoding(spec, name)
    if "triton" in found:
        found[HALF] = hash_encoding(replace(spec, precision="float16"), "triton")
    nn.init.normal_(reference.table)
    for encoding in found.values():
        encoding.load_state_dict(reference.state_dict())
    if device.type == "cuda" and is_installed("tinycudann"):
        found["tcnn"] = hash_encoding(spec, "tcnn")
    return {name: encoding.to(device) for name, encoding in found.items()}


def encoding_contenders(implementations: Mapping[str, nn.Module], positions: Tensor) -> dict[str, Contender]:
    """The ``implementations`` at ``positions`` [N,3] in the unit cube; the trained parameter is the table."""
    width = next(iter(implementations.values()))(positions[:1]).shape[1]
    gradient = torch.randn(positions.shape[0], width, generator=torch.Generator().manual_seed(0)).to(positions.device)

    def contender(name: str, encoding: nn.Module) -> Contender:
        def train() -> Tensor:
            encoding.zero_grad()
            encoding(positions).backward(gradient)
            (table,) = encoding.parameters()
            assert table.grad is not None
            return table.grad

        # tiny-cuda-nn's encoding has another table, so its numbers differ.
        tolerance = {"tcnn": None, HALF: ROUNDED}.get(name, TOLERANCE)
        return Contender(lambda: encoding(positions), train, tolerance)

    return {name: contender(name, encoding) for name, encoding in implementations.items()}


def network_contenders(field: HashGridField, positions: Tensor) -> dict[str, Contender]:
    """The field's network at ``positions`` [N,3] in the unit cube, as torch's layers and (on CUDA) Triton compute it.

    Triton runs with tensor cores (the default unless the precision is float32) and without. The gradients to the
    weights and to the first features are compared.
    """
    with torch.no_grad():
        features = field.encoding(positions)
    weights = list(field.network.parameters())
    gradient = torch.randn(positions.shape[0], 4, generator=torch.Generator().manual_seed(0)).to(positions.device)

    def contender(compute: Callable[[Tensor], Tensor], tolerance: float) -> Contender:
        def train() -> Tensor:
            inputs = features.detach().requires_grad_()
            to_features, *to_weights = torch.autograd.grad(compute(inputs), [inputs, *weights], gradient)
            return torch.cat([to_features[:1000].flatten(), *[one.flatten() for one in to_weights]])

        return Contender(lambda: compute(features), train, tolerance)

    def fused(kernel: FusedNetwork) -> Callable[[Tensor], Tensor]:
        return lambda inputs: kernel(inputs, weights[0], weights[1])

    found = {"torch": contender(field.network, TOLERANCE)}
    for backend in _network_backends(positions.device.type):
        for name, tensor_cores in ((backend, True), (f"{backend}, float32", False)):
            width, inputs = weights[0].shape
            kernel = fused_network(backend, inputs, width, len(weights) - 1, tensor_cores=tensor_cores)
            if kernel is not None:
                found[name] = contender(fused(kernel), KINKS if tensor_cores else TOLERANCE)
    return found


def marching_contenders(scene: Scene) -> dict[str, Contender]:
    """The samplers of the scene's device, from rays to packed samples; the samples per ray are compared."""
    device = scene.density.device.type
    names = ["torch", *_fast(device)]
    if device == "cuda" and nerfacc_obstacle() is None:
        names.append("nerfacc")

    def march(name: str) -> Tensor:
        samples = sample_rays(
            scene.rays, scene.occupancy, step_size=scene.step_size, max_samples=scene.max_samples, backend=name
        )
        return samples.offsets.diff().float()

    # nerfacc traverses cell by cell and differs at their borders.
    return {name: Contender(partial(march, name), tolerance=None if name == "nerfacc" else SHIFTED) for name in names}


def compositing_contenders(scene: Scene) -> dict[str, Contender]:
    """Weights and a view's sums by ray, as the torch reference and (on CUDA) Triton compute them.

    Gradients are to the densities and the colours.
    """
    device = scene.density.device
    colour = torch.rand(scene.density.shape[0], 3, generator=torch.Generator().manual_seed(0)).to(device)

    def sums(name: str, density: Tensor, colour: Tensor) -> Tensor:
        weights = render_weights(density, scene.samples, backend=name)
        return torch.cat(composite(weights, colour, scene.samples.t_mids, scene.samples, backend=name), dim=-1)

    def train(name: str) -> Tensor:
        inputs = scene.density.clone().requires_grad_(), colour.clone().requires_grad_()
        sums(name, *inputs).square().sum().backward()
        return torch.cat([torch.as_tensor(one.grad).flatten() for one in inputs])

    names = ["torch", *_fast("cuda")] if device.type == "cuda" else ["torch"]
    return {name: Contender(partial(sums, name, scene.density, colour), partial(train, name)) for name in names}


def _network_backends(device: str) -> list[str]:
    """The backends with a kernel for the network: on a GPU, its FAST one."""
    return _fast(device) if device == "cuda" else []


def _fast(device: str) -> list[str]:
    """The device's FAST implementation, if it can be used."""
    return [] if device == "cuda" and triton_obstacle() is not None else [FAST[device]]


def can_compile() -> bool:
    """Whether the C++ compiler is installed that torch.compile needs on a CPU."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def bench_kernel(
    contenders: Mapping[str, Contender],
    device: torch.device,
    *,
    rounds: int,
    on_round: Callable[[], None] = lambda: None,
) -> list[KernelTiming]:
    """Times every contender ``rounds`` times CALLS, alternately, so that noise affects all equally.

    The first round compiles and is not counted. ``on_round`` is called after each, ``rounds`` + 1 times. Ratios are to
    the device's FAST contender, or to the first without one.

    Raises:
        AssertionError: a contender's numbers differ from the first one's.
    """
    forward: dict[str, list[float]] = defaultdict(list)
    training: dict[str, list[float]] = defaultdict(list)
    expected: list[Tensor] | None = None
    for number in range(rounds + 1):
        for name, contender in contenders.items():
            calls = CALLS[device.type] if number else 1
            started = now(device)
            with torch.no_grad():
                found = [_repeated(contender.forward, calls)]
            between = now(device)
            if contender.training is not None:
                found.append(_repeated(contender.training, calls))
            ended = now(device)
            if number:
                forward[name].append(1e3 * (between - started) / calls)
                training[name].append(1e3 * (ended - between) / calls)
                continue
            expected = expected or found
            if contender.tolerance is not None:
                for one, other in zip(found, expected, strict=True):
                    difference = (one - other).norm()
                    assert difference <= contender.tolerance * other.norm(), f"{name} computes something else"
        on_round()
    # The minimum, because other processes can only add time.
    fast = FAST[device.type] if FAST[device.type] in contenders else next(iter(contenders))
    timings = []
    for name, contender in contenders.items():
        best, ratio = min(forward[name]), min(forward[name]) / min(forward[fast])
        trained: tuple[float | None, float | None] = (None, None)
        if contender.training is not None:
            trained = min(training[name]), min(training[name]) / min(training[fast])
        timings.append(KernelTiming(name, best, trained[0], ratio, trained[1]))
    return timings


def _repeated(function: Callable[[], Tensor], calls: int) -> Tensor:
    """The result of the last of ``calls``."""
    for _ in range(calls - 1):
        function()
    return function()


def _gather(positions: Tensor, table: Tensor, layout: Layout) -> Tensor:
    """The reference's encoding without ``embedding_bag``."""
    entries, weights = corners(positions, layout)
    return (table[entries] * weights[..., None]).sum(2).flatten(1)
