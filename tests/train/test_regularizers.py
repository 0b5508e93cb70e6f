"""The regularisers, compared with values computed by hand."""

import math

import pytest
import torch

from nfsd3d.generators.base import Rendering
from nfsd3d.train.regularizers import opaque, orient, penalty, sparsity, z_variance

OPACITY = torch.tensor([0.0, 0.3, 0.6, 1.0]).reshape(1, 1, 2, 2)
OFF = {"sparsity": 0.0, "opaque": 0.0, "orient": 0.0, "z_variance": 0.0}


def rendering(**changes) -> Rendering:
    values = {
        "image": torch.zeros(1, 3, 2, 2),
        "opacity": OPACITY,
        "depth": torch.zeros(1, 1, 2, 2),
        "depth_variance": torch.tensor([9.0, 9.0, 0.2, 0.4]).reshape(1, 1, 2, 2),
        "normal": None,
        "orientation": torch.tensor([0.0, 0.1, 0.2, 0.3]).reshape(1, 1, 2, 2),
        "albedo": None,
        "samples_per_ray": torch.tensor(1.0),
    }
    return Rendering(**{**values, **changes})


def test_sparsity():
    expected = (math.sqrt(0.01) + math.sqrt(0.1) + math.sqrt(0.37) + math.sqrt(1.01)) / 4
    assert float(sparsity(OPACITY)) == pytest.approx(expected, rel=1e-6)


def test_opaque_is_the_entropy_with_clamped_ends():
    def entropy(p):
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    expected = (entropy(0.001) + entropy(0.3) + entropy(0.6) + entropy(0.999)) / 4
    assert float(opaque(OPACITY)) == pytest.approx(expected, rel=1e-4)
    assert float(opaque(torch.full((1, 1, 2, 2), 0.5))) == pytest.approx(math.log(2))


def test_opaque_pushes_away_from_one_half():
    opacity = torch.tensor([0.4, 0.6], requires_grad=True)
    opaque(opacity).backward()
    assert opacity.grad[0] > 0 > opacity.grad[1]  # descent lowers the first and raises the second


def test_orient_is_a_mean_over_hit_pixels():
    assert float(orient(rendering().orientation, OPACITY)) == pytest.approx(0.6 / 3)
    assert float(orient(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))) == 0


def test_z_variance_is_a_mean_over_solid_pixels():
    assert float(z_variance(rendering().depth_variance, OPACITY)) == pytest.approx(0.3)


def test_z_variance_of_an_empty_image_is_zero_with_a_finite_gradient():
    variance = torch.ones(1, 1, 2, 2, requires_grad=True)
    loss = z_variance(variance, torch.zeros(1, 1, 2, 2))
    loss.backward()
    assert float(loss.detach()) == 0 and (variance.grad == 0).all()


def test_the_penalty_is_the_weighted_sum():
    weights = {"sparsity": 2.0, "opaque": 3.0, "orient": 5.0, "z_variance": 7.0}
    expected = (
        2 * sparsity(OPACITY)
        + 3 * opaque(OPACITY)
        + 5 * orient(rendering().orientation, OPACITY)
        + 7 * z_variance(rendering().depth_variance, OPACITY)
    )
    assert float(penalty(rendering(), weights)) == pytest.approx(float(expected))
    assert float(penalty(rendering(), OFF)) == 0


def test_orientation_without_normals_is_an_error():
    assert float(penalty(rendering(orientation=None), {**OFF, "sparsity": 1.0})) > 0
    with pytest.raises(ValueError, match="normals"):
        penalty(rendering(orientation=None), {**OFF, "orient": 1.0})
