"""Coverage: every implementation finds the triangle that each pixel shows."""

import numpy as np
import pytest
import torch
import trimesh

from nfsd3d.generators.mesh.rasterize.coverage import cover
from nfsd3d.generators.mesh.rasterize.fragments import fragments, project
from nfsd3d.views.cameras import orbit


def sphere(subdivisions=2, radius=0.6):
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return torch.tensor(np.array(mesh.vertices), dtype=torch.float32), torch.tensor(np.array(mesh.faces))


def triangles(*corners):
    """Screen [1,V,3] and faces of triangles whose corners are given as (x, y, inverse depth)."""
    points = torch.tensor(corners, dtype=torch.float32).reshape(1, -1, 3)
    return points, torch.arange(points.shape[1]).reshape(-1, 3)


@pytest.fixture
def found(implementation):
    name, device = implementation

    def find(screen, faces, height, width):
        return cover(screen.to(device), faces.to(device), height, width, name).cpu()

    return find


def test_a_sphere_is_seen_from_all_sides_as_the_reference_sees_it(found):
    vertices, faces = sphere()
    screen = project(vertices, orbit(3, 24, elevation_deg=(-50.0, 10.0, 80.0)))
    shown = found(screen, faces, 24, 24)
    assert torch.equal(shown, cover(screen.double(), faces, 24, 24))
    assert 0.2 < (shown >= 0).float().mean() < 0.35


def test_overlapping_triangles_of_all_sizes(found):
    rng = torch.Generator().manual_seed(0)
    centres = torch.rand(60, 1, 2, generator=rng) * 24 - 4
    corners = centres + torch.randn(60, 3, 2, generator=rng) * torch.logspace(-1, 1.2, 60)[:, None, None]
    screen = torch.cat([corners, torch.rand(60, 3, 1, generator=rng) + 0.1], dim=-1).reshape(1, -1, 3)
    faces = torch.arange(180).reshape(-1, 3)
    shown = found(screen, faces, 17, 13)
    assert torch.equal(shown, cover(screen.double(), faces, 17, 13))
    assert len(shown.unique()) > 15


def test_the_nearest_is_shown_and_of_equally_near_ones_the_first(found):
    big = (-9.0, -9.0), (30.0, -9.0), (-9.0, 30.0)
    screen, faces = triangles(*[(x, y, z) for z in (0.5, 0.7, 0.7, 0.2) for x, y in big])
    assert found(screen, faces, 3, 4).unique().tolist() == [1]


def test_a_pixel_belongs_to_one_of_two_triangles_that_share_an_edge_through_its_centre(found):
    screen, faces = triangles((0, 0, 1), (4, 0, 1), (0, 4, 1), (4, 0, 1), (4, 4, 1), (0, 4, 1))
    shown = found(screen, faces, 4, 4)[0]
    assert (shown >= 0).all() and shown[0, 0] == 0 and shown[3, 3] == 1
    assert (shown.flip(1).diagonal() == 0).all()


def test_what_reaches_behind_the_camera_is_not_drawn(found):
    screen, faces = triangles((-9, -9, 1), (30, -9, 1), (-9, 30, -1))
    assert (found(screen, faces, 3, 3) == -1).all()


def test_triangles_without_area_outside_or_of_no_numbers_show_nothing(found):
    nan, far = float("nan"), 1e30
    flat = (0, 0, 1), (2, 2, 1), (4, 4, 1)
    beside = (-9, 0, 1), (-5, 0, 1), (-5, 4, 1)
    broken = (nan, nan, nan), (4, 0, 1), (0, 4, 1), (nan, 0, 1), (4, 0, 1), (0, 4, 1)
    beyond = (far, 0, 1), (far, 9, 1), (far, 4, 1)
    assert (found(*triangles(*flat, *beside, *broken, *beyond), 4, 4) == -1).all()


def test_the_reference_tests_so_many_pixels_at_a_time(monkeypatch):
    rng = torch.Generator().manual_seed(3)
    screen = torch.rand(1, 90, 3, generator=rng, dtype=torch.float64) * torch.tensor([20.0, 20.0, 1.0])
    faces = torch.arange(90).reshape(-1, 3)
    whole = cover(screen, faces, 20, 20)
    monkeypatch.setattr("nfsd3d.generators.mesh.rasterize.coverage.CANDIDATES", 50)
    assert torch.equal(cover(screen, faces, 20, 20), whole) and len(whole.unique()) > 10


def test_no_triangles(found):
    assert (found(torch.zeros(2, 0, 3), torch.zeros(0, 3, dtype=torch.int64), 2, 5) == -1).all()


def test_fragments_are_where_the_rays_of_their_pixels_meet_the_triangles():
    vertices, faces = sphere(1)
    cameras = orbit(2, 20, elevation_deg=(20.0, -30.0), distance=1.3)
    screen = project(vertices.double(), cameras)
    seen = fragments(screen, faces, cover(screen, faces, 20, 20))
    rays = cameras.rays()
    points = seen.interpolate(vertices.double(), faces)
    away = points - rays.origins[seen.pixel]
    across = torch.linalg.cross(away, rays.directions[seen.pixel].double())
    assert across.norm(dim=1).max() < 1e-6 * away.norm(dim=1).max()
    forward = -cameras.rotations[seen.pixel // 400, :, 2].double()
    torch.testing.assert_close(1 / seen.inverse_depth, (away * forward).sum(-1), rtol=1e-6, atol=0)


def test_the_footprint_is_the_longer_step_between_neighbouring_pixels():
    vertices = torch.tensor([[0.0, -1.5, -1.5], [0.3, 1.5, -1.5], [-0.4, -1.5, 1.5], [0.2, 1.5, 1.5]]).double()
    faces, uv = torch.tensor([[0, 1, 2], [1, 3, 2]]), torch.rand(4, 2, generator=torch.Generator().manual_seed(1))
    screen = project(vertices, orbit(1, 64))
    seen = fragments(screen, faces, cover(screen, faces, 64, 64))
    place = torch.full((64, 64, 2), torch.nan).double()
    place.view(-1, 2)[seen.pixel] = seen.interpolate(uv.double(), faces)
    triangle = torch.full((64, 64), -1)
    triangle.view(-1)[seen.pixel] = seen.triangle
    footprint = torch.full((64, 64), torch.nan).double()
    footprint.view(-1)[seen.pixel] = seen.footprint(uv.double(), faces)
    along_x, along_y = (place[1:-1, 2:] - place[1:-1, :-2]) / 2, (place[2:, 1:-1] - place[:-2, 1:-1]) / 2
    by_differences = torch.stack([along_x.norm(dim=-1), along_y.norm(dim=-1)]).amax(0)
    middle = triangle[1:-1, 1:-1]
    same = (triangle[1:-1, 2:] == middle) & (triangle[1:-1, :-2] == middle)
    same &= (triangle[2:, 1:-1] == middle) & (triangle[:-2, 1:-1] == middle) & (middle >= 0)
    assert same.sum() > 500
    torch.testing.assert_close(footprint[1:-1, 1:-1][same], by_differences[same], rtol=2e-2, atol=0)
