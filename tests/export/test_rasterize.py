"""The rasteriser, and unlit images of a mesh."""

import numpy as np
import trimesh

from nfsd3d.export.texture.rasterize import draw, rasterize
from nfsd3d.generators.mesh.surface import SurfaceMesh, Texture, linear_to_srgb, srgb_to_linear
from nfsd3d.views.cameras import orbit


def test_a_pixel_shows_the_triangle_over_its_centre():
    found = rasterize(np.array([[[0, 0, 0], [8, 0, 0], [0, 8, 0]]]), 8, 8)
    rows, columns = np.nonzero(found.covered)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {
        (r, c) for r in range(8) for c in range(8) if r + c + 1 <= 8
    }
    middle = found.weights[1, 2]  # of the pixel at x = 2.5, y = 1.5
    np.testing.assert_allclose(middle, [1 - 4 / 8, 2.5 / 8, 1.5 / 8], atol=1e-6)


def test_neighbours_leave_no_gap_and_the_first_keeps_a_shared_edge():
    square = np.array([[[0, 0, 0], [8, 0, 0], [8, 8, 0]], [[0, 0, 0], [8, 8, 0], [0, 8, 0]]])
    found = rasterize(square, 8, 8)
    assert found.covered.all()
    assert (found.face.diagonal() == 0).all()


def test_the_nearest_triangle_is_seen_and_both_windings_are():
    near = np.array([[0, 0, -1], [0, 8, -1], [8, 0, -1]])
    far = np.array([[0, 0, 2], [8, 0, 2], [0, 8, 2]])
    for order in ([near, far], [far, near]):
        found = rasterize(np.stack(order), 8, 8)
        assert (found.face[found.covered] == (0 if order[0] is near else 1)).all()


def test_triangles_outside_the_image_or_without_area_are_ignored():
    beyond = [
        [[-9, -9, 0], [-5, -9, 0], [-9, -5, 0]],
        [[1, 1, 0], [5, 5, 0], [3, 3, 0]],
        [[-4, 4, 0], [20, 2, 0], [3, 30, 0]],
    ]
    found = rasterize(np.array(beyond), 8, 8)
    assert set(found.face[found.covered]) == {2}
    np.testing.assert_allclose(found.weights[found.covered].sum(-1), 1, atol=1e-5)


def test_a_ball_has_the_outline_and_the_colours_that_perspective_gives():
    sphere = trimesh.creation.icosphere(subdivisions=4, radius=0.5)
    vertices = sphere.vertices.astype(np.float32)
    colors = (vertices + 0.5).clip(0, 1)
    mesh = SurfaceMesh(vertices, sphere.faces.astype(np.int32), vertices * 2, colors)
    for index in range(3):
        camera = orbit(3, 96, 20.0)[index]
        image, shown = draw(mesh, camera)
        rays = camera.rays()
        origin, direction = rays.origins.numpy(), rays.directions.numpy()
        middle = (origin * direction).sum(1)
        inside = middle**2 - (origin**2).sum(1) + 0.5**2
        expected = (inside > 0).reshape(96, 96)
        assert (expected != shown).mean() < 0.004
        hit = origin + (-middle - np.sqrt(inside.clip(0)))[:, None] * direction
        both = (expected & shown).ravel()
        # Colours are mixed in linear light.
        np.testing.assert_allclose(image.reshape(-1, 3)[both], (hit[both] + 0.5).clip(0, 1), atol=0.05)
        assert (image[~shown] == 0).all()


def test_texture_coordinates_are_perspective_correct():
    """A tilted square, half of its texture white: the border is straight, and in the middle of the square."""
    vertices = np.array([[0.9, -0.5, -0.5], [0.9, 0.5, -0.5], [-0.9, 0.5, 0.5], [-0.9, -0.5, 0.5]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    image = np.zeros((64, 64, 3), np.uint8)
    image[:32] = 255
    uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)  # the texture's top is the square's far end
    texture = Texture(uv, np.arange(4, dtype=np.int32), faces, image)
    up = np.tile(np.float32([0, 0, 1]), (4, 1))
    mesh = SurfaceMesh(vertices, faces, up, np.full((4, 3), 0.5, np.float32), texture)
    camera = orbit(1, 128, 30.0)
    image, shown = draw(mesh, camera)
    rays = camera.rays()
    normal = np.cross(vertices[1] - vertices[0], vertices[2] - vertices[0])
    origin, direction = rays.origins.numpy(), rays.directions.numpy()
    along = ((vertices[0] - origin) @ normal) / (direction @ normal)
    place = origin + along[:, None] * direction
    clear = shown.ravel() & (np.abs(place[:, 0]) > 0.05)
    assert clear.sum() > 500
    np.testing.assert_array_equal(image.reshape(-1, 3)[clear, 0] > 0.5, place[clear, 0] < 0)


def test_textures_are_filtered_in_linear_light():
    vertices = np.array([[0, -0.5, -0.5], [0, 0.5, -0.5], [0, 0.5, 0.5], [0, -0.5, 0.5]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    image = np.array([[[0] * 3, [255] * 3], [[0] * 3, [255] * 3]], np.uint8)
    middle = np.full((4, 2), 0.5, np.float32)
    texture = Texture(middle, np.arange(4, dtype=np.int32), faces, image)
    mesh = SurfaceMesh(vertices, faces, vertices, np.zeros((4, 3), np.float32), texture)
    image, shown = draw(mesh, orbit(1, 32, 0.0))
    assert shown.any()
    np.testing.assert_allclose(srgb_to_linear(image[shown]), 0.5, atol=1e-5)


def test_triangles_behind_the_camera_are_not_drawn():
    sphere = trimesh.creation.icosphere(subdivisions=2, radius=0.5)
    vertices = (sphere.vertices + np.array([4.0, 0, 0])).astype(np.float32)
    mesh = SurfaceMesh(vertices, sphere.faces.astype(np.int32), vertices, np.zeros_like(vertices))
    assert not draw(mesh, orbit(1, 32, 0.0))[1].any()
    assert draw(mesh, orbit(2, 32, 0.0)[1])[1].any()  # seen from the other side


def test_srgb_to_linear_at_known_values():
    known = {0.0: 0.0, 0.04045: 0.0031308, 0.5: 0.2140411, 1.0: 1.0}
    np.testing.assert_allclose(srgb_to_linear(np.array(list(known))), list(known.values()), atol=1e-6)
    encoded = np.linspace(0, 1, 257)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(encoded)), encoded, atol=1e-6)
