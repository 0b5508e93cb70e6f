"""Packed volume rendering: torch and Triton against nerfacc's dense functions, a slow loop and closed forms."""

import math
from dataclasses import replace

import nerfacc
import pytest
import torch

from nfsd3d.generators.nerf.compositing.compositing import (
    accumulate,
    composite,
    contributes,
    exclusive_sum,
    render_weights,
)
from nfsd3d.generators.nerf.sampling.sampling import RaySamples


def pack(counts: list[int], rng: torch.Generator, dtype: torch.dtype = torch.float32) -> RaySamples:
    """Random samples, ``counts[r]`` of them on ray r."""
    per_ray = torch.tensor(counts, dtype=torch.int64)
    starts = [torch.rand(count, generator=rng, dtype=dtype).sort().values * 3 for count in counts]
    t_starts = torch.cat([torch.zeros(0, dtype=dtype), *starts])
    lengths = 0.02 + 0.1 * torch.rand(t_starts.shape, generator=rng, dtype=dtype)
    return RaySamples(
        ray_indices=torch.repeat_interleave(torch.arange(len(counts)), per_ray),
        t_starts=t_starts,
        t_ends=t_starts + lengths,
        offsets=torch.nn.functional.pad(per_ray.cumsum(0), (1, 0)),
    )


def on(device: torch.device, samples: RaySamples) -> RaySamples:
    return RaySamples(*(tensor.to(device) for tensor in samples.tensors))


def densities(samples: RaySamples, rng: torch.Generator) -> torch.Tensor:
    return 10 * torch.rand(samples.t_starts.shape, generator=rng, dtype=samples.t_starts.dtype)


COUNTS = {
    "ragged": [3, 0, 0, 17, 1, 0, 5],
    "empty at both ends": [0, 0, 4, 9, 0],
    "nothing": [0, 0, 0],
    "no rays": [],
    "one": [1],
}


@pytest.mark.parametrize("name", COUNTS)
def test_equals_a_slow_loop(name: str, rng: torch.Generator, implementation: tuple[str, torch.device]) -> None:
    backend, device = implementation
    samples = pack(COUNTS[name], rng, torch.float64)
    density = densities(samples, rng)
    values = torch.randn(density.shape[0], 4, generator=rng, dtype=torch.float64)
    there = on(device, samples)
    weights = render_weights(density.to(device), there, backend=backend)
    sums = accumulate(values.to(device), there, weights=weights, backend=backend).cpu()
    torch.testing.assert_close(accumulate(weights[:, None] * values.to(device), there, backend=backend).cpu(), sums)

    expected = torch.zeros(len(COUNTS[name]), 4, dtype=torch.float64)
    first = 0
    for ray, count in enumerate(COUNTS[name]):
        transmittance = 1.0
        for index in range(first, first + count):
            passes = math.exp(-float(density[index] * (samples.t_ends[index] - samples.t_starts[index])))
            assert float(weights[index]) == pytest.approx(transmittance * (1 - passes), abs=1e-12)
            expected[ray] += transmittance * (1 - passes) * values[index]
            transmittance *= passes
        first += count
    torch.testing.assert_close(sums, expected)


# Rays of many lengths; every fifth is empty, and the last is longer than any tile of a kernel.
RAGGED = [37 * ray % 101 if ray % 5 else 0 for ray in range(161)] + [1027]


@pytest.mark.parametrize("channels", [1, 3, 13])
@pytest.mark.parametrize("counts", [RAGGED, [], [0, 0, 0], [1]], ids=["ragged", "no rays", "nothing", "one"])
def test_kernels_equal_torch_forward_and_backward(
    counts: list[int], channels: int, rng: torch.Generator, fast_backend: tuple[str, torch.device]
) -> None:
    """Thin and opaque samples among them: both ends of the exponential function."""
    backend, device = fast_backend
    samples = pack(counts, rng)
    density = densities(samples, rng)
    density[::7] *= 1e-6
    density[::11] *= 1e3
    values = torch.randn(density.shape[0], channels, generator=rng)
    cotangent = torch.randn(len(counts), channels, generator=rng).to(device)
    to_weights = torch.randn(density.shape, generator=rng).to(device)
    assert counts != RAGGED or density.shape[0] > 4096

    samples = on(device, samples)
    results = []
    for name in ("torch", backend):
        inputs = [tensor.clone().to(device).requires_grad_() for tensor in (density, values)]
        weights = render_weights(inputs[0], samples, backend=name)
        sums = accumulate(inputs[1], samples, weights=weights, backend=name)
        plain = accumulate(inputs[1], samples, backend=name)
        ((sums * cotangent).sum() + plain.square().sum() + (weights * to_weights).sum()).backward()
        results.append(([weights.detach(), sums.detach(), plain.detach()], [tensor.grad for tensor in inputs]))
    for kind, tolerance in ((0, 1e-5), (1, 1e-4)):
        for expected, found in zip(results[0][kind], results[1][kind], strict=True):
            assert found.shape == expected.shape
            assert counts in ([], [0, 0, 0]) or expected.abs().max() > 0
            scale = float(expected.abs().max()) if expected.numel() else 0.0
            torch.testing.assert_close(found, expected, atol=tolerance * scale, rtol=tolerance)


def test_kernels_equal_torch_in_float64(rng: torch.Generator, fast_backend: tuple[str, torch.device]) -> None:
    backend, device = fast_backend
    samples = pack([5, 0, 40, 1, 77], rng, torch.float64)
    density = densities(samples, rng)
    density[::3] *= 1e-3
    values = torch.randn(density.shape[0], 3, generator=rng, dtype=torch.float64)
    samples, results = on(device, samples), []
    for name in ("torch", backend):
        inputs = [tensor.clone().to(device).requires_grad_() for tensor in (density, values)]
        weights = render_weights(inputs[0], samples, backend=name)
        sums = accumulate(inputs[1], samples, weights=weights, backend=name)
        sums.sin().sum().backward()
        results.append((weights.detach(), sums.detach(), *(tensor.grad for tensor in inputs)))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("counts", [RAGGED, [], [0, 0, 0], [1]], ids=["ragged", "no rays", "nothing", "one"])
@pytest.mark.parametrize("by_columns", [False, True])
def test_a_composite_is_the_sums_of_its_columns(
    counts: list[int], by_columns: bool, rng: torch.Generator, implementation: tuple[str, torch.device]
) -> None:
    backend, device = implementation
    samples = on(device, pack(counts, rng, torch.float64))
    count = samples.t_starts.shape[0]
    weights, depth = (torch.rand(count, generator=rng, dtype=torch.float64).to(device) for _ in range(2))
    colour = torch.rand(3, count, generator=rng, dtype=torch.float64).to(device).T  # as the field gives it
    colour = colour if by_columns else colour.contiguous()
    cotangent = torch.randn(len(counts), 6, generator=rng, dtype=torch.float64).to(device)
    results = []
    for composited in (True, False):
        inputs = [tensor.detach().clone().requires_grad_() for tensor in (weights, colour)]
        if composited:
            sums = torch.cat(composite(inputs[0], inputs[1], depth, samples, backend=backend), dim=-1)
        else:
            values = torch.cat([torch.ones_like(depth)[:, None], inputs[1], depth[:, None], depth[:, None] ** 2], -1)
            sums = torch.zeros_like(cotangent).index_add(0, samples.ray_indices, inputs[0][:, None] * values)
        (sums * cotangent).sum().backward()
        results.append([sums.detach(), *(tensor.grad for tensor in inputs)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_only_required_gradients_are_computed(rng: torch.Generator, fast_backend: tuple[str, torch.device]) -> None:
    backend, device = fast_backend
    samples = on(device, pack([3, 0, 4], rng))
    values, weights = torch.randn(7, 2, generator=rng).to(device), torch.rand(7, generator=rng).to(device)
    one = values.clone().requires_grad_()
    accumulate(one, samples, weights=weights, backend=backend)[:, 0].sum().backward()
    torch.testing.assert_close(one.grad, torch.stack([weights, torch.zeros_like(weights)], -1))
    other = weights.clone().requires_grad_()
    accumulate(values, samples, weights=other, backend=backend)[:, 0].sum().backward()
    torch.testing.assert_close(other.grad, values[:, 0])


@pytest.mark.parametrize("rays", [1, 37])
def test_equals_nerfacc_on_dense_rays_forward_and_backward(
    rays: int, rng: torch.Generator, device: torch.device
) -> None:
    per_ray = 113
    samples = pack([per_ray] * rays, rng)
    density = densities(samples, rng).to(device)
    samples = on(device, samples)
    values = torch.randn(density.shape[0], 3, generator=rng).to(device)
    cotangent = torch.randn(rays, 3, generator=rng).to(device)

    ours = density.clone().requires_grad_(), values.clone().requires_grad_()
    weights = render_weights(ours[0], samples)
    sums = accumulate(weights[:, None] * ours[1], samples)
    sums.backward(cotangent)

    theirs = density.clone().requires_grad_(), values.clone().requires_grad_()
    dense = (rays, per_ray)
    dense_weights, _, _ = nerfacc.render_weight_from_density(
        samples.t_starts.view(dense), samples.t_ends.view(dense), theirs[0].view(dense)
    )
    dense_sums = nerfacc.accumulate_along_rays(dense_weights, theirs[1].view(*dense, 3))
    dense_sums.backward(cotangent)

    torch.testing.assert_close(weights, dense_weights.reshape(-1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(sums, dense_sums, atol=1e-5, rtol=1e-5)
    for mine, nerfaccs in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, nerfaccs.grad, atol=1e-5, rtol=1e-4)


def test_equals_nerfacc_where_some_rays_are_empty(rng: torch.Generator) -> None:
    """nerfacc's dense functions know no missing samples: there, their density is zero."""
    counts = [0, 11, 0, 4, 11]
    samples = pack(counts, rng)
    density = densities(samples, rng)
    sums = accumulate(render_weights(density, samples)[:, None], samples)

    present = torch.arange(11)[None] < torch.tensor(counts)[:, None]
    t_starts, t_ends, sigmas = torch.zeros(3, 5, 11).unbind()
    t_starts[present], t_ends[present], sigmas[present] = samples.t_starts, samples.t_ends, density
    weights, _, _ = nerfacc.render_weight_from_density(t_starts, t_ends, sigmas)
    torch.testing.assert_close(sums, nerfacc.accumulate_along_rays(weights))


@pytest.mark.parametrize("name", ["ragged", "empty at both ends", "nothing"])
def test_gradients_in_float64(name: str, rng: torch.Generator) -> None:
    samples = pack(COUNTS[name], rng, torch.float64)
    density = densities(samples, rng).requires_grad_()
    values = torch.randn(density.shape[0], 2, generator=rng, dtype=torch.float64).requires_grad_()

    def composite(density: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return accumulate(render_weights(density, samples)[:, None] * values, samples)

    assert torch.autograd.gradcheck(composite, (density, values))
    assert torch.autograd.gradcheck(lambda x: exclusive_sum(x, samples), (density,))


def test_opacity_of_a_uniform_medium(rng: torch.Generator, implementation: tuple[str, torch.device]) -> None:
    """1 - exp(-density * length), however it is cut; and never above 1."""
    backend, device = implementation
    edges = torch.cat([torch.zeros(1), torch.rand(98, generator=rng).sort().values, torch.ones(1)]) * 2
    samples = on(device, RaySamples(torch.zeros(99, dtype=torch.int64), edges[:-1], edges[1:], torch.tensor([0, 99])))
    for density in (1e-4, 0.7, 1e4):
        weights = render_weights(torch.full((99,), density, device=device), samples, backend=backend)
        opacity = accumulate(weights[:, None], samples, backend=backend)
        assert float(opacity) == pytest.approx(1 - math.exp(-density * 2), rel=1e-5)
        assert float(opacity) <= 1 + 1e-6


def test_an_opaque_ray_does_not_reduce_the_precision_of_later_rays(
    rng: torch.Generator, implementation: tuple[str, torch.device]
) -> None:
    """The running sum over all rays is much larger than a thin ray's own optical depth."""
    backend, device = implementation
    counts = [64] * 2000
    samples = pack(counts, rng)
    density = torch.full_like(samples.t_starts, 1e4)
    density[-64:] = 1e-3
    alone = RaySamples(
        torch.zeros(64, dtype=torch.int64), samples.t_starts[-64:], samples.t_ends[-64:], torch.tensor([0, 64])
    )
    weights = render_weights(density.to(device), on(device, samples), backend=backend)
    torch.testing.assert_close(weights[-64:].cpu(), render_weights(density[-64:], alone), rtol=1e-4, atol=0)


def test_an_opaque_sample_does_not_reduce_the_precision_of_its_ray(implementation: tuple[str, torch.device]) -> None:
    """The transmittance before it is that of the samples before it, to the last digits."""
    backend, device = implementation
    edges = torch.arange(5.0) / 10
    samples = on(device, RaySamples(torch.zeros(4, dtype=torch.int64), edges[:-1], edges[1:], torch.tensor([0, 4])))
    weights = render_weights(torch.tensor([1.0, 2.0, 1e5, 3.0]).to(device), samples, backend=backend)
    expected = torch.tensor([-math.expm1(-0.1), math.exp(-0.1) * -math.expm1(-0.2), math.exp(-0.3), 0.0])
    digits = 1e-6 if device.type == "cpu" else 3e-6  # a GPU's exp may be two units in the last place away
    torch.testing.assert_close(weights.cpu(), expected, rtol=digits, atol=1e-12)


@pytest.mark.parametrize("name", COUNTS)
def test_contributing_samples_equal_a_slow_loop(
    name: str, rng: torch.Generator, implementation: tuple[str, torch.device]
) -> None:
    backend, device = implementation
    samples = pack(COUNTS[name], rng)
    density = 40 * densities(samples, rng)  # opaque after a sample or two
    density[:1] = 60.0  # the least that is kept
    least = torch.tensor(60.0).to(device)
    moved = on(device, samples)
    kept = contributes(moved, density.to(device), least, backend=backend).cpu()
    found = samples.where(kept)
    edges = torch.stack([moved.t_starts, moved.t_ends], dim=1)  # whatever the strides
    strided = replace(moved, t_starts=edges[:, 0], t_ends=edges[:, 1])
    assert torch.equal(contributes(strided, density.to(device), least, backend=backend).cpu(), kept)
    expected, counts = [], []
    for first, last in zip(samples.offsets[:-1].tolist(), samples.offsets[1:].tolist(), strict=True):
        left, before = 1.0, len(expected)
        for index in range(first, last):
            if density[index] >= 60 and left >= 1e-4:
                expected.append(index)
            left *= math.exp(-density[index] * (samples.t_ends[index] - samples.t_starts[index]))
        counts.append(len(expected) - before)
    assert name != "ragged" or 0 < len(expected) < len(density) - (density < 60).sum()  # both rules leave some out
    assert found.offsets.diff().tolist() == counts
    for field in ("ray_indices", "t_starts", "t_ends"):
        assert torch.equal(getattr(found, field), getattr(samples, field)[expected])
