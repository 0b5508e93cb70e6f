"""Shading identities."""

import pytest
import torch

from nfsd3d.generators.base import SHADINGS
from nfsd3d.generators.nerf.shading import needs_normals, shade

ALBEDO = torch.tensor([[0.2, 0.5, 0.9], [1.0, 0.0, 0.3], [0.6, 0.6, 0.6]])
TO_LIGHT = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 1], [1, 2, 3]]), dim=-1)


def test_albedo_is_the_albedo() -> None:
    assert shade("albedo", ALBEDO, None, None, 0.1) is ALBEDO


def test_facing_the_light_shows_the_albedo_and_facing_away_the_ambient_part() -> None:
    torch.testing.assert_close(shade("lambertian", ALBEDO, TO_LIGHT, TO_LIGHT, 0.1), ALBEDO)
    torch.testing.assert_close(shade("lambertian", ALBEDO, -TO_LIGHT, TO_LIGHT, 0.1), 0.1 * ALBEDO)


def test_cosine_law() -> None:
    normal = torch.tensor([[0.5, 3**0.5 / 2, 0.0]])
    light = torch.tensor([[1.0, 0.0, 0.0]])
    torch.testing.assert_close(shade("lambertian", ALBEDO[:1], normal, light, 0.2), (0.2 + 0.8 * 0.5) * ALBEDO[:1])


def test_full_ambient_light_is_albedo() -> None:
    torch.testing.assert_close(shade("lambertian", ALBEDO, -TO_LIGHT, TO_LIGHT, 1.0), ALBEDO)


def test_textureless_is_lambertian_on_white() -> None:
    normals = TO_LIGHT.roll(1, 0)
    expected = shade("lambertian", torch.ones_like(ALBEDO), normals, TO_LIGHT, 0.1)
    torch.testing.assert_close(shade("textureless", ALBEDO, normals, TO_LIGHT, 0.1), expected)


def test_normals_are_shown_as_colours() -> None:
    normals = torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, 1]])
    expected = torch.tensor([[1.0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 1]])
    torch.testing.assert_close(shade("normals", ALBEDO, normals, TO_LIGHT, 0.1), expected)


def test_which_shadings_need_normals() -> None:
    assert [needs_normals(shading) for shading in SHADINGS] == [False, True, True, True]
    with pytest.raises(ValueError, match="needs normals"):
        shade("lambertian", ALBEDO, None, TO_LIGHT, 0.1)
    with pytest.raises(ValueError, match=r"^shading 'phong': choose one of albedo, lambertian, textureless, normals$"):
        shade("phong", ALBEDO, TO_LIGHT, TO_LIGHT, 0.1)
