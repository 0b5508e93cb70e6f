"""Packed volume rendering against nerfacc's dense functions, a slow loop and closed forms."""

import math

import nerfacc
import pytest
import torch

from nfsd3d.render.compositing import accumulate, exclusive_sum, render_weights
from nfsd3d.render.samplers import RaySamples


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
def test_equals_a_slow_loop(name: str, rng: torch.Generator) -> None:
    samples = pack(COUNTS[name], rng, torch.float64)
    density = densities(samples, rng)
    values = torch.randn(density.shape[0], 4, generator=rng, dtype=torch.float64)
    weights = render_weights(density, samples)
    sums = accumulate(weights[:, None] * values, samples)

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


@pytest.mark.parametrize("rays", [1, 37])
def test_equals_nerfacc_on_dense_rays_forward_and_backward(
    rays: int, rng: torch.Generator, device: torch.device
) -> None:
    per_ray = 113
    samples = pack([per_ray] * rays, rng)
    density = densities(samples, rng).to(device)
    samples = RaySamples(*(getattr(samples, n).to(device) for n in ("ray_indices", "t_starts", "t_ends", "offsets")))
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


def test_opacity_of_a_uniform_medium(rng: torch.Generator) -> None:
    """1 - exp(-density * length), however it is cut; and never above 1."""
    edges = torch.cat([torch.zeros(1), torch.rand(98, generator=rng).sort().values, torch.ones(1)]) * 2
    samples = RaySamples(torch.zeros(99, dtype=torch.int64), edges[:-1], edges[1:], torch.tensor([0, 99]))
    for density in (1e-4, 0.7, 1e4):
        opacity = accumulate(render_weights(torch.full((99,), density), samples)[:, None], samples)
        assert float(opacity) == pytest.approx(1 - math.exp(-density * 2), rel=1e-5)
        assert float(opacity) <= 1 + 1e-6


def test_an_opaque_ray_does_not_blur_the_thin_ones_after_it(rng: torch.Generator) -> None:
    """The running sum over all rays is much larger than a thin ray's own optical depth."""
    counts = [64] * 2000
    samples = pack(counts, rng)
    density = torch.full_like(samples.t_starts, 1e4)
    density[-64:] = 1e-3
    alone = RaySamples(
        torch.zeros(64, dtype=torch.int64), samples.t_starts[-64:], samples.t_ends[-64:], torch.tensor([0, 64])
    )
    torch.testing.assert_close(
        render_weights(density, samples)[-64:], render_weights(density[-64:], alone), rtol=1e-4, atol=0
    )
