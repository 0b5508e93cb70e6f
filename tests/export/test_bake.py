"""Texture baking: the colours of a surface at its vertices and at the texels of its charts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nfsd3d.export.isosurface import Surface
from nfsd3d.export.texture import bake as bake_module
from nfsd3d.export.texture.bake import SUPERSAMPLING, bake, surface_colors, texel_side
from nfsd3d.export.texture.unwrap import Charts
from nfsd3d.generators.mesh.surface import linear_to_srgb, reduced, srgb_to_linear

FRONT = np.float32([1, 0, 0])


class Layers:
    """Slabs along x, the front one first: each (from x down to, density, colour); the last one goes on."""

    def __init__(self, *slabs):
        self.slabs = slabs

    def density(self, positions):
        return self._pick(positions, [slab[1] for slab in self.slabs])

    def albedo(self, positions):
        return self._pick(positions, [slab[2] for slab in self.slabs])

    def _pick(self, positions, values):
        bounds = torch.tensor([slab[0] for slab in self.slabs])
        index = (positions[:, :1] < bounds).sum(-1).clamp(max=len(self.slabs) - 1)
        return torch.tensor(values)[index]


RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def color_at(solid, reach=0.08, x=0.0):
    points = np.float32([[x, 0, 0]])
    return surface_colors(solid, points, FRONT[None], 1.0, reach)[0]


def test_an_opaque_layer_hides_the_layers_behind():
    solid = Layers((0.0, 0.0, BLUE), (-0.04, 1e4, RED), (-9, 1e4, GREEN))
    np.testing.assert_allclose(color_at(solid), RED, atol=1e-4)


def test_layers_are_composited_as_along_a_ray():
    """Four samples in front of and four behind the surface, red and then green, of equal density."""
    solid = Layers((0.0, 10.0, RED), (-9, 10.0, GREEN))
    step = 2 * 0.08 * 2 / 7  # views pass the surface at a slant
    passed = np.exp(-10.0 * step * np.arange(9))
    share = (passed[0] - passed[4]) / (passed[0] - passed[8])
    np.testing.assert_allclose(color_at(solid), [share, 1 - share, 0], atol=1e-3)


def test_a_thin_layer_has_its_colour_and_empty_space_has_none():
    solid = Layers((-0.02, 0.0, BLUE), (-0.05, 1e-3, RED), (-9, 0.0, BLUE))
    np.testing.assert_allclose(color_at(solid), RED, atol=1e-3)
    assert np.isfinite(color_at(Layers((-9, 0.0, BLUE), (-10, 0.0, RED)))).all()


def test_samples_stay_inside_the_worlds_cube():
    seen = []

    class Watched(Layers):
        def density(self, positions):
            seen.append(positions)
            return super().density(positions)

    color_at(Watched((0.0, 0.0, RED), (-9, 10.0, GREEN)), x=0.99)
    assert torch.cat(seen).abs().max() <= 1


@pytest.fixture
def square():
    """A square in the plane x = 0 of two triangles, and its charts: each triangle half of the texture, with a gap."""
    vertices = np.float32([[0, -0.5, 0.5], [0, 0.5, 0.5], [0, 0.5, -0.5], [0, -0.5, -0.5]])
    surface = Surface(vertices, np.array([[0, 2, 1], [0, 3, 2]], np.int32))
    uv = np.float32([[0.05, 0], [0.95, 0.9], [0.95, 0], [0.05, 0.1], [0.05, 1], [0.95, 1]])
    return surface, Charts(uv, np.array([0, 2, 1, 0, 3, 2], np.int32), np.arange(6, dtype=np.int32).reshape(2, 3))


def by_place(points, normals):
    """Colours that tell the place on the square."""
    del normals
    return np.stack([points[:, 1] + 0.5, points[:, 2] + 0.5, np.zeros(len(points))], axis=-1)


def test_texels_have_the_colour_of_their_point_on_the_surface(square):
    surface, charts = square
    texture = bake(surface, np.tile(FRONT, (4, 1)), charts, 128, by_place)
    assert texture.image.shape == (128, 128, 3) and texture.image.dtype == np.uint8
    rows, columns = np.meshgrid(np.arange(128), np.arange(128), indexing="ij")
    u, v = (columns + 0.5) / 128, (rows + 0.5) / 128
    upper = (v < u - 0.06) & (u < 0.94)  # well inside the first chart, where (u, v) = (.05 + .9 y, .9 (1 - z))
    expected = np.stack([(u - 0.05) / 0.9, 1 - v / 0.9, 0 * u], axis=-1)[upper]
    np.testing.assert_allclose(texture.image[upper] / 255, expected, atol=0.01)
    np.testing.assert_array_equal(texture.faces, charts.faces)


def test_texels_outside_the_charts_have_the_colour_of_the_nearest_inside(square):
    surface, charts = square
    texture = bake(
        surface, np.tile(FRONT, (4, 1)), charts, 64, lambda p, n: np.tile(np.float32([0.2, 0.4, 0.6]), (len(p), 1))
    )
    assert (texture.image == np.round(np.multiply([0.2, 0.4, 0.6], 255))).all()
    texture = bake(surface, np.tile(FRONT, (4, 1)), charts, 64, by_place)
    assert np.abs(texture.image[10, 60:].astype(int) - texture.image[10, 59].astype(int)).max() < 8


def test_a_texel_is_the_mean_of_its_samples_in_linear_light(square):
    surface, charts = square
    asked = []

    def checks(points, normals):
        asked.append(len(points))
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
        bright = np.arange(len(points)) % 2 == 0  # looks alternate in each row: half of each texel
        return np.repeat(bright[:, None], 3, axis=1).astype(float)

    texture = bake(surface, np.tile(FRONT, (4, 1)), charts, 64, checks)
    assert SUPERSAMPLING == 2 and asked[0] == pytest.approx(0.81 * 64**2 * 4, rel=0.03)
    half = round(float(linear_to_srgb(np.array(0.5))) * 255)
    inside = texture.image[4:24, 40:56, 0]
    assert (np.abs(inside.astype(int) - half) <= 1).mean() > 0.8


def test_a_texel_smaller_than_the_fields_detail_is_one_sample(square):
    surface, charts = square
    side = texel_side(surface, charts, 64)
    assert side == pytest.approx(1 / (0.9 * 64))
    asked = []

    def counted(points, normals):
        asked.append(len(points))
        return by_place(points, normals)

    whole, single = (
        bake(surface, np.tile(FRONT, (4, 1)), charts, 64, counted, detail) for detail in (0.99 * side, 1.01 * side)
    )
    assert asked[0] == pytest.approx(4 * asked[1], rel=0.05)
    np.testing.assert_allclose(single.image[4:24, 40:56].astype(int), whole.image[4:24, 40:56], atol=1)


def test_a_texture_baked_in_bands_is_the_same(square, monkeypatch):
    surface, charts = square
    whole = bake(surface, np.tile(FRONT, (4, 1)), charts, 50, by_place)
    monkeypatch.setattr(bake_module, "SAMPLES_PER_BAND", 7 * 50 * SUPERSAMPLING**2)
    shares = []
    bands = bake(surface, np.tile(FRONT, (4, 1)), charts, 50, by_place, on_progress=shares.append)
    np.testing.assert_allclose(bands.image.astype(int), whole.image.astype(int), atol=1)
    assert len(shares) == 8 and shares == sorted(shares) and shares[-1] == 1


def test_triangles_smaller_than_a_texel_get_their_colour(square):
    surface, charts = square
    tiny = charts.uv.copy()
    tiny[3:] = np.float32([[0.02, 0.97], [0.0201, 0.97], [0.0201, 0.9701]])

    def by_height(points, normals):
        del normals
        return np.where(points[:, 2:] + points[:, 1:2] < -1e-4, RED, GREEN)  # the second triangle is red

    texture = bake(surface, np.tile(FRONT, (4, 1)), replace(charts, uv=tiny), 32, by_height)
    assert tuple(texture.image[31, 0]) == (255, 0, 0)


def test_a_reduced_texture_is_the_mean_light_of_blocks(square):
    surface, charts = square
    texture = bake(surface, np.tile(FRONT, (4, 1)), charts, 66, by_place)
    assert reduced(texture, 66) is texture
    small = reduced(texture, 33)
    assert small.size == 33
    block = srgb_to_linear(texture.image[10:12, 20:22] / 255).mean((0, 1))
    np.testing.assert_allclose(small.image[5, 10] / 255, linear_to_srgb(block), atol=0.003)
    odd = reduced(texture, 16)  # blocks of 5: 65 of the 66 texels
    assert odd.size == 13 and odd.uv.max() <= 1
    np.testing.assert_allclose(odd.uv[0] * 13 * 5, texture.uv[0] * 66, atol=1e-4)
