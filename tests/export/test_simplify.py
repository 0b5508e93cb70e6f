"""Mesh simplification: fewer triangles, the same shape, still closed."""

import fast_simplification
import numpy as np
import pytest
import torch
import trimesh

from nfsd3d.export import simplify as simplify_module
from nfsd3d.export import unit
from nfsd3d.export.isosurface import Surface, extract_surface
from nfsd3d.export.level_set import LevelSet, sample_density
from nfsd3d.export.simplify import apart, is_closed, simplify, simplify_mesh, without_folds
from nfsd3d.generators.mesh.surface import SurfaceMesh


@pytest.fixture(scope="module")
def lump() -> Surface:
    """A surface with bumps, arms and holes of every size, of some 100,000 triangles."""
    waves = torch.tensor(np.random.default_rng(1).normal(size=(32, 3)) * 10, dtype=torch.float32)

    def density(points):
        noise = torch.cos(points @ waves.T + torch.arange(32)).sum(-1)
        return torch.nn.functional.softplus(noise + 10 * (0.8 - points.norm(dim=-1)))

    return extract_surface(LevelSet(density, 1.0, None, 1.0), sample_density(density, 1.0, 33), split=2)


@pytest.mark.parametrize("max_faces", [20_000, 4000])
def test_a_rough_surface_meets_the_budget_and_stays_closed(lump, max_faces):
    assert len(lump.faces) > 50_000
    small = simplify(lump, max_faces)
    assert 0.7 * max_faces < len(small.faces) <= max_faces
    mesh = trimesh.Trimesh(small.vertices, small.faces, process=False)
    assert mesh.is_watertight and mesh.is_winding_consistent
    whole = trimesh.Trimesh(lump.vertices, lump.faces, process=False)
    assert mesh.volume == pytest.approx(whole.volume, rel=0.02)


@pytest.mark.parametrize("size", [2.0**-10, 2.0**12])
def test_the_triangles_do_not_depend_on_the_unit(lump, size):
    expected, found = simplify(lump, 4000), simplify(Surface(lump.vertices * np.float32(size), lump.faces), 4000)
    np.testing.assert_array_equal(found.faces, expected.faces)
    np.testing.assert_array_equal(found.vertices, expected.vertices * np.float32(size))


@pytest.mark.parametrize(
    "places", [np.zeros((0, 3)), np.zeros((3, 3)), np.full((2, 3), np.inf), np.full((2, 3), np.nan)]
)
def test_what_has_no_size_keeps_its_unit(places):
    with np.errstate(invalid="ignore"):
        assert unit.factor(places.astype(np.float32)) == 1.0


@pytest.mark.parametrize("size", [1e-42, 3e38])
def test_a_surface_of_any_size_has_a_unit(size):
    places = np.array([[-1, 0, 0], [1, 0, 0]], dtype=np.float32) * np.float32(size)
    scaled = places * unit.factor(places)
    assert np.isfinite(scaled).all() and scaled.any()


def test_cheap_collapses_come_first():
    """Which the library does not see to in a world of radius 1."""
    mesh = trimesh.creation.torus(0.6, 0.25, major_sections=400, minor_sections=200)
    surface = Surface(mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32))

    def distance(vertices, faces):
        x, y, z = vertices[faces].mean(axis=1).T
        return np.abs(np.hypot(np.hypot(x, y) - 0.6, z) - 0.25).mean()

    small = simplify(surface, 20_000)
    in_the_world = fast_simplification.simplify(surface.vertices, surface.faces, target_count=20_000)
    assert distance(small.vertices, small.faces) < 0.6 * distance(*in_the_world)


def test_a_small_surface_is_unchanged(lump):
    assert simplify(lump, len(lump.faces)) is lump


def test_a_surface_that_collapses_would_open_is_unchanged(lump, monkeypatch):
    def torn(vertices, faces, target_count, agg):
        return vertices, faces[1 : target_count + 1]

    monkeypatch.setattr(simplify_module.fast_simplification, "simplify", torn)
    assert simplify(lump, 4000) is lump


def test_folds_are_removed_in_pairs():
    tetrahedron = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
    pillow = np.array([[5, 6, 7], [7, 6, 5]])
    twice = np.array([[1, 2, 3], [3, 2, 1]])  # one pair on a triangle that is there already
    faces = np.concatenate([pillow, tetrahedron, twice])
    assert is_closed(tetrahedron) and not is_closed(faces)
    kept = without_folds(faces)
    assert sorted(map(tuple, kept)) == sorted(map(tuple, tetrahedron))
    assert without_folds(tetrahedron).tolist() == tetrahedron.tolist()


def test_surfaces_that_touch_at_an_edge_are_separated():
    """Two tetrahedra with one edge in common: each keeps its shape, and the edge is no longer in common."""
    vertices = np.float32([[0, 0, 0], [0, 0, 1], [1, 0, 0.5], [1, 1, 0.5], [-1, 0, 0.5], [-1, -1, 0.5]])
    tetrahedron = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
    if np.linalg.det(vertices[[1, 2, 3]]) > 0:
        tetrahedron = tetrahedron[:, ::-1]
    both = np.concatenate([tetrahedron, np.array([0, 1, 4, 5])[[0, 1, 2, 3]][tetrahedron]])
    assert not is_closed(both)
    surface = apart(vertices, both)
    assert is_closed(surface.faces)
    mesh = trimesh.Trimesh(surface.vertices, surface.faces, process=True)
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(2 / 6, rel=0.05)
    # The new vertices lie in the middle of the edge, one on each side of it.
    assert sorted(np.sign(surface.vertices[len(vertices) :, 0])) == [-1, 1]
    np.testing.assert_allclose(surface.vertices[len(vertices) :, 2], 0.5, atol=0.05)
    # Each with triangles of its own tetrahedron only.
    for own in range(len(vertices), len(surface.vertices)):
        mates = surface.vertices[surface.faces[(surface.faces == own).any(axis=1)]][..., 0]
        assert (np.sign(mates) * np.sign(surface.vertices[own, 0]) >= 0).all()


def test_a_triangle_with_a_split_side_becomes_two():
    fan = np.float32([[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]])
    # Two wedges around the z axis, each closed by a flat lid, below and above.
    wedges = np.array([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2], [0, 1, 4], [0, 5, 1], [0, 4, 5], [1, 5, 4]])
    surface = apart(fan, wedges)
    assert len(surface.faces) == len(wedges) + 4 and is_closed(surface.faces)


def test_closed_means_two_opposite_triangles_at_each_edge():
    tetrahedron = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
    assert is_closed(tetrahedron)
    assert not is_closed(tetrahedron[1:])
    flipped = tetrahedron.copy()
    flipped[0] = flipped[0, ::-1]
    assert not is_closed(flipped)


def test_a_finished_mesh_keeps_shape_normals_and_colours():
    sphere = trimesh.creation.icosphere(subdivisions=3)
    vertices = (sphere.vertices * [0.3, 0.4, 0.6] + [0.1, 0.0, 0.0]).astype(np.float32)
    colors = np.stack([(vertices[:, 0] + 0.2) / 0.6] * 3, axis=1).astype(np.float32)
    egg = trimesh.Trimesh(vertices, sphere.faces, process=False)
    mesh = SurfaceMesh(vertices, sphere.faces.astype(np.int32), egg.vertex_normals.astype(np.float32), colors)
    small = simplify_mesh(mesh, 400)
    assert len(small.faces) <= 400
    shape = small.to_trimesh()
    assert shape.is_watertight and shape.volume == pytest.approx(egg.volume, rel=0.03)
    np.testing.assert_allclose(np.linalg.norm(small.normals, axis=1), 1, atol=1e-5)
    assert ((small.normals * (small.vertices - [0.1, 0, 0])).sum(1) > 0).all()
    np.testing.assert_allclose(small.colors[:, 0], (small.vertices[:, 0] + 0.2) / 0.6, atol=0.1)
    assert simplify_mesh(mesh, 10**6) is mesh


def test_a_surface_whose_collapses_leave_only_folds_is_unchanged(monkeypatch):
    ball = trimesh.creation.icosphere(1)
    surface = Surface(ball.vertices.astype(np.float32), ball.faces.astype(np.int32))
    fold = np.array([[0, 1, 2], [0, 2, 1]], np.int32)
    monkeypatch.setattr("fast_simplification.simplify", lambda vertices, faces, **settings: (vertices, fold))
    assert simplify(surface, 10) is surface
