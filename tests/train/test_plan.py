"""Schedules become one step's settings."""

import pytest
import torch

from nfsd3d.train.plan import plan_at
from nfsd3d.train.step import draw_background, draw_shading


def test_every_schedule_is_read_at_the_progress(configure):
    config = configure(
        **{
            "train.resolution": [[0.0, 16], [0.5, 32]],
            "train.t_max": [[0.0, 0.9], [1.0, 0.5]],
            "train.t_min": 0.1,
            "train.learning_rate_factor": [[0.0, 0.0], [0.2, 1.0]],
            "train.regularizers": {
                "sparsity": [[0.0, 2.0], [1.0, 0.0]],
                "opaque": [[0.5, 0.0], [1.0, 10.0]],
                "orient": 3.0,
                "z_variance": 0.0,
            },
            "train.shading": {
                "lambertian": [[0.5, 0.0], [0.5, 0.8]],
                "textureless": 0.25,
                "ambient": 0.3,
                "normals": 0.1,
            },
            "generator.normals": "finite_difference",
        }
    )
    early, late = plan_at(config.train, 0.1), plan_at(config.train, 0.75)
    assert (early.resolution, late.resolution) == (16, 32)
    assert (early.t_min, early.t_max) == pytest.approx((0.1, 0.86))
    assert early.learning_rate_factor == pytest.approx(0.5)
    assert early.regularizers == pytest.approx({"sparsity": 1.8, "opaque": 0.0, "orient": 3.0, "z_variance": 0.0})
    assert late.regularizers == pytest.approx({"sparsity": 0.5, "opaque": 5.0, "orient": 3.0, "z_variance": 0.0})
    assert (early.lambertian, plan_at(config.train, 0.499).lambertian) == (0.0, 0.0)  # albedo before the jump
    assert (plan_at(config.train, 0.5).lambertian, late.lambertian) == (0.8, 0.8)
    assert (late.textureless, late.normals, late.ambient, late.views) == (0.25, 0.1, 0.3, 2)


def test_shading_follows_its_probabilities(rng):
    assert {draw_shading(rng, 0.0, 0.5) for _ in range(50)} == {"albedo"}
    assert {draw_shading(rng, 1.0, 1.0) for _ in range(50)} == {"textureless"}
    assert {draw_shading(rng, 1.0, 0.0) for _ in range(50)} == {"lambertian"}
    assert {draw_shading(rng, 1.0, 0.0, 1.0) for _ in range(50)} == {"normals"}
    shown = [draw_shading(rng, 1.0, 0.3, 0.5) for _ in range(4000)]
    for kind, share in (("textureless", 0.3), ("normals", 0.5), ("lambertian", 0.2)):
        assert shown.count(kind) / 4000 == pytest.approx(share, abs=0.04)
    drawn = [draw_shading(rng, 0.6, 0.5) for _ in range(4000)]
    assert drawn.count("albedo") / 4000 == pytest.approx(0.4, abs=0.04)
    assert drawn.count("textureless") / 4000 == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("views", [1, 4])
def test_every_view_has_its_own_chance_of_a_plain_background(rng, views, probability):
    drawn = [draw_background(rng, views, probability) for _ in range(2000)]
    replaced = torch.stack([mask for _, mask in drawn])
    assert replaced.shape == (2000, views) and replaced.dtype == torch.bool
    torch.testing.assert_close(replaced.float().mean(0), torch.full((views,), probability), atol=0.04, rtol=0)
    # A batch comes as close to the probability as whole views can.
    assert ((replaced.sum(1) - views * probability).abs() < 1).all()
    colors = torch.stack([colors for colors, _ in drawn])
    assert colors.shape == (2000, views, 3) and colors.min() >= 0 and colors.max() <= 1
    assert colors.mean() == pytest.approx(0.5, abs=0.03)
    assert (colors[0, 0] != colors[0, -1]).any() == (views > 1)


def test_the_rng_state_does_not_depend_on_the_outcome():
    states = []
    for probability in (0.0, 1.0):
        rng = torch.Generator().manual_seed(1)
        draw_background(rng, 4, probability)
        draw_shading(rng, probability, probability)
        states.append(rng.get_state())
    assert torch.equal(*states)
