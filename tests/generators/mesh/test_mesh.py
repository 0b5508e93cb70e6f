"""A textured mesh as a generator."""

import numpy as np
import pytest
import torch
import trimesh

from nfsd3d.export.texture.rasterize import draw
from nfsd3d.generators.base import RenderOptions
from nfsd3d.generators.mesh.color_change import ColorChange, kept_in_range, places_once
from nfsd3d.generators.mesh.mesh import TexturedMesh
from nfsd3d.generators.mesh.settings import MeshSettings
from nfsd3d.generators.mesh.smoothness import laplacian, normal_consistency, vertex_normals
from nfsd3d.generators.mesh.surface import SurfaceMesh, Texture, nearest_known
from nfsd3d.views.cameras import orbit

SETTINGS = MeshSettings(
    radius=1.0,
    geometry_steps=2,
    max_faces=1000,
    texture_size=64,
    laplacian=0.0,
    normal_consistency=0.0,
    background="color",
)


def settings(**changes):
    return MeshSettings(**{**vars(SETTINGS), **changes})


@pytest.fixture(scope="module")
def ball() -> SurfaceMesh:
    """A ball whose texture has a smooth colour at every longitude and latitude."""
    made = trimesh.creation.uv_sphere(radius=0.6, count=[24, 24])
    vertices, faces = np.array(made.vertices, np.float32), np.array(made.faces, np.int32)
    unit = vertices / np.linalg.norm(vertices, axis=1, keepdims=True)
    corners = unit[faces].reshape(-1, 3)  # every triangle has its own piece of the map
    uv = np.stack([corners[:, 1] * 0.25 + np.where(corners[:, 0] < 0, 0.25, 0.75), corners[:, 2] * 0.45 + 0.5], axis=1)
    side = np.repeat(unit[faces][:, :, 0].mean(axis=1) < 0, 3)
    uv[:, 0] = corners[:, 1] * 0.24 + np.where(side, 0.25, 0.75)
    grid = np.linspace(0, 1, 64)
    image = np.stack([*np.broadcast_arrays(grid[None, :], grid[:, None]), np.full((64, 64), 0.5)], axis=-1)
    texture = Texture(
        uv.astype(np.float32),
        faces.reshape(-1),
        np.arange(len(uv), dtype=np.int32).reshape(-1, 3),
        (image * 255).round().astype(np.uint8),
    )
    return SurfaceMesh(vertices, faces, unit, np.full_like(vertices, 0.5), texture)


def test_views_are_those_of_the_drawn_mesh(ball):
    cameras = orbit(3, 48)
    rendering = TexturedMesh(SETTINGS, ball).render(cameras)
    for index in range(3):
        colours, covered = draw(ball, cameras[index])
        seen = rendering.image[index].permute(1, 2, 0).detach().numpy()
        inside = covered & (rendering.opacity[index, 0].detach().numpy() == 1)
        assert inside.sum() > 0.9 * covered.sum()
        assert np.abs(seen - colours)[inside].mean() < 0.01  # this one averages in sRGB, and over a pixel
        assert np.abs(rendering.opacity[index, 0].detach().numpy() - covered).mean() < 0.02


def test_depth_is_the_distance_of_the_surface_and_normals_face_the_camera(ball):
    cameras = orbit(1, 33, elevation_deg=0.0)
    rendering = TexturedMesh(SETTINGS, ball).render(cameras, options=RenderOptions(normals=True))
    assert rendering.depth[0, 0, 16, 16].item() == pytest.approx(2.5 - 0.6, abs=0.01)
    assert rendering.depth[0, 0, 0, 0].item() == pytest.approx(2.5)
    torch.testing.assert_close(rendering.normal[0, :, 16, 16], torch.tensor([1.0, 0, 0]), atol=0.02, rtol=0)
    assert rendering.normal[0, :, 0, 0].abs().max() == 0 and rendering.albedo is None


def test_normals_as_colours_leave_the_gradient_to_the_shape(ball):
    mesh, cameras = TexturedMesh(SETTINGS, ball), orbit(2, 24)
    mesh.update(0, torch.Generator())
    seen = mesh.render(cameras, options=RenderOptions(torch.ones(2, 3), shading="normals"))
    inside = seen.opacity == 1
    expected = (seen.normal + 1) / 2
    torch.testing.assert_close(seen.image * inside, expected * inside, atol=1e-5, rtol=0)
    (seen.image * torch.rand_like(seen.image)).sum().backward()
    assert mesh.offset.grad.abs().max() > 0 and (mesh.texture.grad == 0).all()


def test_the_back_of_an_open_surface_is_lit_from_its_own_side(ball):
    half = SurfaceMesh(ball.vertices, ball.faces[::-1, ::-1].copy(), -ball.normals, ball.colors, ball.texture)
    inside_out = Texture(
        ball.texture.uv, ball.texture.source, ball.texture.faces[::-1, ::-1].copy(), ball.texture.image
    )
    turned = SurfaceMesh(half.vertices, half.faces, half.normals, half.colors, inside_out)
    lit, cameras = RenderOptions(shading="lambertian"), orbit(2, 24)
    expected, seen = (TexturedMesh(SETTINGS, mesh).render(cameras, options=lit) for mesh in (ball, turned))
    torch.testing.assert_close(seen.image, expected.image, atol=1e-4, rtol=0)
    assert seen.albedo is not None and seen.image.mean() < seen.albedo.mean() + 0.9


def test_backgrounds_replace_the_own_one_where_they_are_told(ball):
    mesh, cameras = TexturedMesh(SETTINGS, ball), orbit(2, 16)
    colours = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    both = mesh.render(cameras, options=RenderOptions(colours)).image[:, :, 0, 0]
    torch.testing.assert_close(both, colours)
    second = RenderOptions(colours, torch.tensor([False, True]))
    torch.testing.assert_close(mesh.render(cameras, options=second).image[0, :, 0, 0], torch.ones(3))
    learned = TexturedMesh(settings(background="learned"), ball)
    assert (learned.render(cameras).image[0, :, 0, 0] < 1).all()
    torch.testing.assert_close(learned.render(cameras, options=second).image[1, :, 0, 0], colours[1])


def test_gradients_are_the_same_every_time_with_several_threads(ball):
    mesh = TexturedMesh(settings(laplacian=1.0, normal_consistency=1.0), ball)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        found = []
        for _ in range(4):
            mesh.zero_grad()
            rendering = mesh.render(orbit(4, 128), options=RenderOptions(shading="lambertian"))
            (rendering.image.square().sum() + rendering.shape_penalty).backward()
            found.append([mesh.offset.grad.clone(), mesh.texture.grad.clone()])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, first) for grads in found for one, first in zip(grads, found[0], strict=True))


def test_views_in_chunks_are_the_same(ball, monkeypatch):
    mesh, cameras = TexturedMesh(SETTINGS, ball), orbit(3, 16)
    options = RenderOptions(torch.rand(3, 3), torch.tensor([True, False, True]), shading="lambertian")
    whole, calls = mesh.render(cameras, options=options), []
    monkeypatch.setattr("nfsd3d.generators.mesh.mesh.PIXELS_PER_CHUNK", 300)
    parts = mesh.render_in_chunks(cameras, options, lambda: calls.append(1))
    assert len(calls) == 3
    for name in ("image", "opacity", "depth", "normal", "albedo"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name).detach())
    assert not parts.image.requires_grad


def test_geometry_learns_in_its_steps_and_the_texture_in_all(ball):
    mesh, rng = TexturedMesh(SETTINGS, ball), torch.Generator()
    optimizer = torch.optim.AdamW([{"params": group} for group in mesh.parameter_groups().values() if group], lr=0.01)
    places, textures = [], []
    for step in range(4):
        mesh.update(step, rng)
        rendering = mesh.render(orbit(2, 16))
        assert rendering.shape_penalty is not None if step < 2 else rendering.shape_penalty is None
        optimizer.zero_grad()
        (rendering.image.mean() * 100 + rendering.opacity.mean() * 100).backward()
        optimizer.step()
        places.append(mesh.vertices.detach().clone())
        textures.append(mesh.texture.detach().clone())
    assert not torch.equal(places[0], places[1]) and torch.equal(places[1], places[3])
    assert not torch.equal(textures[2], textures[3])


def test_a_fixed_mesh_is_written_bit_for_bit(ball):
    mesh = TexturedMesh(settings(geometry_steps=0), ball)
    mesh.update(0, torch.Generator())
    mesh.render(orbit(1, 16)).image.sum().backward()
    assert mesh.offset.grad is None and mesh.texture.grad is not None
    written = mesh.surface()
    assert np.array_equal(written.vertices, ball.vertices) and np.array_equal(written.faces, ball.faces)
    for name in ("uv", "source", "faces", "image"):
        assert np.array_equal(getattr(written.texture, name), getattr(ball.texture, name)), name


def test_colours_change_in_space_and_are_written_into_the_texture(ball):
    mesh, rng = TexturedMesh(settings(geometry_steps=0, color_cells=32), ball), torch.Generator()
    mesh.update(0, rng)
    written = mesh.surface()
    assert np.array_equal(written.texture.image, ball.texture.image)  # nothing has changed yet
    plain = TexturedMesh(settings(geometry_steps=0), ball)
    cameras = orbit(3, 48)
    torch.testing.assert_close(mesh.render(cameras).image, plain.render(cameras).image)
    optimizer = torch.optim.AdamW(mesh.parameter_groups()["texture"], lr=0.02)
    for _ in range(40):  # red in front, green at the left
        view = mesh.render(orbit(4, 32))
        wanted = torch.stack([mesh.start.new_tensor([1.0, 0, 0]), mesh.start.new_tensor([0, 1.0, 0])])
        loss = sum(
            ((view.image[number] - wanted[number][:, None, None]) * view.opacity[number]).square().mean()
            for number in range(2)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seen = mesh.render(orbit(4, 48)).image
    assert seen[0, :, 24, 24].tolist() == pytest.approx([1, 0, 0], abs=0.1)
    assert seen[1, :, 24, 24].tolist() == pytest.approx([0, 1, 0], abs=0.1)
    assert seen.min() >= 0 and seen.max() <= 1
    baked = TexturedMesh(settings(geometry_steps=0), mesh.surface())  # by itself, without the change
    inside = mesh.render(orbit(4, 48)).opacity == 1
    difference = ((baked.render(orbit(4, 48)).image - seen) * inside).abs()
    assert difference.mean() < 0.01


def test_the_change_and_its_gradient_are_the_same_on_all_backends(ball, fast_backend):
    found = []
    for name, device in (("torch", fast_backend[1]), fast_backend):
        mesh = TexturedMesh(settings(geometry_steps=0, color_cells=24), ball, field_backend=name).to(device)
        table = mesh.color_change.grids.table
        values = torch.rand(table.shape, generator=torch.Generator().manual_seed(3)) * 0.2 - 0.1
        with torch.no_grad():
            table.copy_(values)
        mesh.update(0, torch.Generator())
        view = mesh.render(orbit(2, 20)).image
        (view * torch.linspace(0, 1, view.numel(), device=device).view_as(view)).sum().backward()
        found.append((view.detach(), table.grad))
    (expected, to_expected), (view, to_table) = found
    torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(to_table, to_expected, atol=1e-4, rtol=1e-4)


def test_a_colour_out_of_range_comes_back():
    colors = torch.tensor([1.4, 0.5, -0.2], requires_grad=True)
    kept = kept_in_range(colors)
    assert kept.tolist() == [1.0, 0.5, 0.0]
    kept.sum().backward()
    assert colors.grad.tolist() == [1, 1, 1]


def test_pixels_that_nothing_covers_take_the_nearest_ones_value():
    values = np.zeros((4, 4, 1))
    values[1, 1], values[3, 3] = 1.0, 2.0
    known = values[..., 0] > 0
    found = nearest_known(values, known)[..., 0]
    assert found[0, 0] == found[1, 2] == found[2, 1] == 1 and found[3, 2] == found[2, 3] == 2
    assert np.array_equal(nearest_known(values, np.zeros_like(known)), values)


def test_maps_that_use_a_place_twice_are_seen(ball):
    uv, faces = torch.from_numpy(ball.texture.uv), torch.from_numpy(ball.texture.faces).long()
    areas = torch.ones(len(faces))
    folded = torch.minimum(uv, 1 - uv)  # mirrored halves
    for scale in (1.0, 0.02):  # also of a small part of the texture
        assert places_once(uv * scale, faces, areas)
        assert not places_once(folded * scale, faces, areas)
    point = torch.full_like(uv, 0.5)
    assert not places_once(point, faces, areas)
    areas[: len(areas) // 20] = 0  # what has no area in space may have none on the map
    part = uv.clone()
    part[faces[: len(areas) // 20].reshape(-1)] = 0.5
    assert places_once(part, faces, areas)


@pytest.mark.parametrize("cells", [1, 7, 8, 9, 24, 47, 64, 100])
def test_the_finest_grid_has_as_many_cells_as_asked_for(cells):
    change = ColorChange(cells, 1.0, "torch")
    assert max(change.grids._layout.resolutions.tolist()) == cells
    assert change(torch.zeros(0, 3)).shape == (0, 3)


def test_the_texture_stays_within_colours(ball):
    mesh = TexturedMesh(SETTINGS, ball)
    with torch.no_grad():
        mesh.texture += torch.randn_like(mesh.texture)
    mesh.update(0, torch.Generator())
    assert mesh.texture.min() == 0 and mesh.texture.max() == 1


def test_a_state_carries_the_mesh_whatever_its_size(ball):
    mesh, other = TexturedMesh(SETTINGS, ball), TexturedMesh(SETTINGS)
    held = other.offset
    assert (other.render(orbit(1, 8)).opacity == 0).all()
    other.load_state_dict(mesh.state_dict())
    assert other.offset is held  # the optimiser's
    torch.testing.assert_close(other.render(orbit(1, 16)).image, mesh.render(orbit(1, 16)).image)
    with torch.no_grad():
        other.texture.zero_()
    assert mesh.texture.max() > 0.5  # a copy


def test_vertex_colours_are_those_of_the_texture(ball):
    colours = TexturedMesh(SETTINGS, ball).surface().colors
    top = ball.vertices[:, 2].argmax()
    assert colours[top] == pytest.approx([0.5, 0.95, 0.5], abs=0.3) and colours[:, 2] == pytest.approx(0.5, abs=0.01)


def test_smoothness_of_known_shapes():
    from nfsd3d.generators.mesh.rasterize.silhouettes import Edges

    def of(made):
        vertices, faces = torch.tensor(np.array(made.vertices)), torch.tensor(np.array(made.faces))
        edges = Edges.of(faces)
        return laplacian(vertices, edges).item(), normal_consistency(vertices, faces, edges).item()

    alone = torch.eye(3), torch.tensor([[0, 1, 2]])
    assert normal_consistency(*alone, Edges.of(alone[1])) == 0
    box = trimesh.creation.box()
    assert of(box)[1] == pytest.approx(12 / 18)  # twelve right angles and six flat edges
    smooth = trimesh.creation.icosphere(subdivisions=3)
    rough = smooth.copy()
    rough.vertices = rough.vertices * np.random.default_rng(0).uniform(0.95, 1.05, (len(rough.vertices), 1))
    assert of(rough)[0] > 3 * of(smooth)[0] and of(rough)[1] > 3 * of(smooth)[1]
    large = smooth.copy()
    large.apply_scale(7)
    assert of(large) == pytest.approx(of(smooth))
    normals = vertex_normals(torch.tensor(np.array(smooth.vertices)), torch.tensor(np.array(smooth.faces)))
    torch.testing.assert_close(normals, torch.tensor(np.array(smooth.vertices)), atol=0.02, rtol=0)
