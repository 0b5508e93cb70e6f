"""Outlines: antialiased as the pixel's covered part, with the gradients that moving vertices has."""

import math

import numpy as np
import pytest
import torch
import trimesh

from nfsd3d.generators.mesh.rasterize.coverage import cover
from nfsd3d.generators.mesh.rasterize.fragments import fragments, project
from nfsd3d.generators.mesh.rasterize.silhouettes import Edges, antialias, crossings
from nfsd3d.views.cameras import orbit


def shape(mesh, dtype=torch.float64):
    return torch.tensor(np.array(mesh.vertices), dtype=dtype), torch.tensor(np.array(mesh.faces))


def view(vertices, faces, cameras, colours=None, backend="torch"):
    """[B,H,W,C] of colours [V,C] at the vertices over 0; default: opacity."""
    size = len(cameras), cameras.height, cameras.width
    screen = project(vertices, cameras)
    seen = fragments(screen, faces, cover(screen, faces, *size[1:], backend=backend))
    colours = torch.ones_like(vertices[:, :1]) if colours is None else colours
    pixels = vertices.new_zeros(math.prod(size), colours.shape[1]).index_copy(
        0, seen.pixel, seen.interpolate(colours, faces)
    )
    depth = vertices.new_zeros(math.prod(size)).index_copy(0, seen.pixel, seen.inverse_depth.detach())
    return antialias(pixels, crossings(screen, faces, Edges.of(faces), depth.reshape(size))).reshape(*size, -1)


def test_every_edge_is_there_once_with_the_triangles_on_both_sides():
    edges = Edges.of(shape(trimesh.creation.box())[1])
    assert len(edges.ends) == 18 and (edges.faces >= 0).all()
    faces = shape(trimesh.creation.box())[1]
    for ends, two, opposite in zip(edges.ends.tolist(), edges.faces.tolist(), edges.opposite.tolist(), strict=True):
        assert two[0] != two[1] and all(set(ends) < set(faces[face].tolist()) for face in two)
        assert {*ends, opposite} == set(faces[two[0]].tolist())


def test_edges_at_a_border_have_one_triangle_and_the_third_of_a_triple_is_left_out():
    fan = torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4]])
    edges = Edges.of(fan)
    both = dict(zip(map(tuple, edges.ends.tolist()), edges.faces.tolist(), strict=True))
    assert both[0, 1] == [0, 1] and both[1, 2] == [0, -1] and both[0, 4] == [2, -1]
    assert len(Edges.of(fan[:0]).ends) == 0


@pytest.mark.parametrize("subdivisions", [2, 6])
def test_a_sphere_covers_the_area_of_its_disc_however_small_its_triangles(subdivisions):
    vertices, faces = shape(trimesh.creation.icosphere(subdivisions=subdivisions, radius=0.6), torch.float32)
    opacity = view(vertices, faces, orbit(2, 32))
    focal = 16 / math.tan(math.radians(22.5))
    disc = math.pi * (focal * math.tan(math.asin(0.6 / 2.5))) ** 2
    assert opacity.sum() / 2 == pytest.approx(disc, rel=0.012 if subdivisions == 6 else 0.03)
    assert opacity.min() > -1e-6 and opacity.max() < 1 + 1e-6
    assert ((opacity > 0) & (opacity < 1)).sum() > 2 * 50


def test_a_sphere_of_triangles_smaller_than_pixels_grows_as_its_disc():
    vertices, faces = shape(trimesh.creation.icosphere(subdivisions=5, radius=1.0))
    radius = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    view(radius * vertices, faces, orbit(4, 32)).sum().backward()
    focal = 16 / math.tan(math.radians(22.5))
    growth = focal**2 * 2 * math.pi * 0.6 * 2.5**2 / (2.5**2 - 0.6**2) ** 2  # of pi (f r)^2 / (d^2 - r^2)
    assert radius.grad.item() / 4 == pytest.approx(growth, rel=0.05)


@pytest.mark.parametrize("solid", ["box", "torus"])
def test_gradients_are_those_of_finite_differences(solid):
    made = trimesh.creation.box((0.9, 0.7, 1.1)) if solid == "box" else trimesh.creation.torus(0.5, 0.2, 9, 7)
    vertices, faces = shape(made)
    rng = torch.Generator().manual_seed(0)
    colours = torch.rand(len(vertices), 3, generator=rng, dtype=torch.float64)
    weights = torch.rand(2, 24, 24, 3, generator=rng, dtype=torch.float64)
    cameras = orbit(2, 24, elevation_deg=(25.0, -40.0))

    def loss(places):
        return (weights * view(places, faces, cameras, colours)).sum()

    places = vertices.clone().requires_grad_()
    loss(places).backward()
    step, checked = 1e-6, 0
    for vertex in range(0, len(vertices), 1 if solid == "box" else 5):
        for axis in range(3):
            moved = torch.zeros_like(vertices)
            moved[vertex, axis] = step
            difference = (loss(vertices + moved) - loss(vertices - moved)) / (2 * step)
            assert places.grad[vertex, axis].item() == pytest.approx(difference.item(), rel=1e-4, abs=1e-6)
            checked += abs(difference.item()) > 0.1
    assert checked > 15


def test_an_outline_moves_smoothly_over_a_pixels_centre():
    square = torch.tensor([[0.0, -0.5, -0.5], [0.0, 0.5, -0.5], [0.0, 0.5, 0.5], [0.0, -0.5, 0.5]]).double()
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    pixel = 2 * 2.5 * math.tan(math.radians(22.5)) / 16  # in world units, at the square
    sums = [
        view(square + torch.tensor([0.0, part * pixel, 0.0]), faces, orbit(1, 16, elevation_deg=0.0))[0, 8, :, 0]
        for part in torch.linspace(0, 2, 41).tolist()
    ]
    rows = torch.stack(sums)
    torch.testing.assert_close(rows.sum(1), torch.full((41,), 1 / pixel).double(), rtol=1e-6, atol=1e-6)
    assert rows.diff(dim=0).abs().max() < 0.051


def test_a_surface_behind_another_one_has_no_outline_there():
    near, far = trimesh.creation.box((0.1, 2.0, 2.0)), trimesh.creation.icosphere(subdivisions=2, radius=0.3)
    far.apply_translation((-0.8, 0, 0))
    alone, together = shape(near), shape(trimesh.util.concatenate([near, far]))
    camera = orbit(1, 32, elevation_deg=0.0)
    assert torch.equal(view(*alone, camera), view(*together, camera))


def test_the_outline_of_a_near_surface_blends_with_what_is_behind_it():
    near, far = trimesh.creation.icosphere(subdivisions=3, radius=0.4), trimesh.creation.box((0.1, 3.0, 3.0))
    far.apply_translation((-1.0, 0, 0))
    vertices, faces = shape(trimesh.util.concatenate([near, far]))
    colours = torch.zeros(len(vertices), 2).double()
    colours[: len(near.vertices), 0], colours[len(near.vertices) :, 1] = 1, 1
    seen = view(vertices, faces, orbit(1, 32, elevation_deg=0.0), colours)
    torch.testing.assert_close(seen.sum(-1), torch.ones(1, 32, 32).double())
    assert ((seen[..., 0] > 0.02) & (seen[..., 0] < 0.98)).sum() > 20


def test_a_pixel_is_not_replaced_more_than_once():
    camera = orbit(1, 9, elevation_deg=0.0)
    dot = trimesh.creation.icosphere(subdivisions=1, radius=0.02)
    opacity = view(*shape(dot), camera)
    assert opacity.min() >= 0 and opacity.sum() < 1


def test_the_view_in_single_precision_is_that_of_the_reference(implementation):
    name, device = implementation
    vertices, faces = shape(trimesh.creation.icosphere(subdivisions=2, radius=0.6))
    cameras = orbit(2, 20)
    weights = torch.rand(2, 20, 20, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def gradient(places, cameras, weights, backend):
        places = places.clone().requires_grad_()
        seen = view(places, faces.to(places.device), cameras, backend=backend)
        (weights * seen).sum().backward()
        return seen.detach(), places.grad

    expected = gradient(vertices, cameras, weights, "torch")
    given = gradient(vertices.float().to(device), cameras.to(device), weights.float().to(device), name)
    for one, other in zip(expected, given, strict=True):
        torch.testing.assert_close(other.double().cpu(), one, rtol=1e-4, atol=1e-4 * one.abs().max().item())
