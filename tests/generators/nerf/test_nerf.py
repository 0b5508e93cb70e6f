"""The NeRF: rendering, training on views, and degenerate scenes."""

import gc
from dataclasses import fields, replace

import pytest
import torch
from small_settings import NERF

from nfsd3d.errors import InputError
from nfsd3d.generators.base import Rendering, RenderOptions
from nfsd3d.generators.nerf.hashgrid.encoding import HashEncoding
from nfsd3d.generators.nerf.hashgrid.spec import HashGridSpec
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.generators.nerf.sampling.sampling import intersect_cube
from nfsd3d.generators.nerf.settings import NeRFSettings
from nfsd3d.views.cameras import Cameras, orbit

SMALL = replace(
    NERF,
    encoding=HashGridSpec(levels=6, features=2, log2_entries=11, base_resolution=4, growth=1.5),
    hidden_width=32,
    occupancy_resolution=20,
    occupancy_interval=8,
    occupancy_warmup=40,
    samples_per_ray=48,
)


def make_nerf(settings: NeRFSettings = SMALL, backend: str = "numba") -> NeRF:
    torch.manual_seed(0)
    return NeRF(settings, field_backend=backend, sampler_backend=backend)


def images(rendering: Rendering) -> dict[str, torch.Tensor]:
    values = {f.name: getattr(rendering, f.name) for f in fields(rendering)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def ball_views(cameras: Cameras) -> torch.Tensor:
    """[B,3,H,W] a ball of radius .5 before a grey wall, red above, green below, blue towards +x."""
    rays = cameras.rays()
    middle = -(rays.origins * rays.directions).sum(-1)
    distance_squared = rays.origins.square().sum(-1) - middle.square()
    hit = distance_squared < 0.25
    point = rays.origins + rays.directions * (middle - (0.25 - distance_squared).clamp(min=0).sqrt())[:, None]
    colour = torch.stack([(point[:, 2] > 0).float(), (point[:, 2] <= 0).float(), point[:, 0] + 0.5], dim=-1)
    pixels = torch.where(hit[:, None], colour, torch.full_like(colour, 0.5))
    return pixels.reshape(len(cameras), cameras.height, cameras.width, 3).permute(0, 3, 1, 2)


def psnr(image: torch.Tensor, target: torch.Tensor) -> float:
    return float(-10 * (image - target).square().mean().log10())


@pytest.mark.parametrize(("shading", "prune_alpha"), [("albedo", 0.0), ("albedo", 0.01), ("lambertian", 0.0)])
def test_fits_a_ball_to_its_views(shading: str, prune_alpha: float, rng: torch.Generator) -> None:
    nerf = make_nerf(replace(SMALL, background="color", prune_alpha=prune_alpha))
    optimizer = torch.optim.Adam(
        [
            {"params": nerf.parameter_groups()["encoding"], "lr": 0.02},
            {"params": nerf.parameter_groups()["network"], "lr": 0.005},
        ],
        betas=(0.9, 0.99),
    )
    cameras = orbit(6, 24, elevation_deg=[-30.0, 0.0, 30.0, 60.0, -10.0, 20.0])
    target = ball_views(cameras)
    wall = torch.full((6, 3), 0.5)
    for step in range(120):
        nerf.update(step, rng)
        rendering = nerf.render(cameras, rng, RenderOptions(background=wall, shading=shading, ambient=0.7))
        loss = (rendering.image - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    unseen = orbit(5, 24, elevation_deg=10.0, start_deg=31.0)
    with torch.no_grad():
        rendering = nerf.render(unseen, options=RenderOptions(background=wall[:5], shading=shading, ambient=0.7))
    assert psnr(rendering.image, ball_views(unseen)) > 20
    hit = (ball_views(unseen) != 0.5).any(1, keepdim=True)
    assert ((rendering.opacity > 0.5) == hit).float().mean() > 0.93
    centre = rendering.depth[:, :, 11:13, 11:13]
    torch.testing.assert_close(centre, torch.full_like(centre, 2.0), atol=0.15, rtol=0)
    assert nerf.occupancy.occupied.float().mean() < 0.4
    if prune_alpha:
        nerf.settings = replace(nerf.settings, prune_alpha=0.0)
        with torch.no_grad():
            everything = nerf.render(unseen, options=RenderOptions(background=wall[:5], shading=shading, ambient=0.7))
        assert rendering.samples_per_ray < 0.8 * everything.samples_per_ray
        assert psnr(rendering.image, everything.image) > 35


def test_shapes_and_ranges(device: torch.device, rng: torch.Generator) -> None:
    backend = "numba" if device.type == "cpu" else "torch"
    nerf = make_nerf(backend=backend).to(device)
    cameras = orbit(3, 8).resized(10, 14)
    rendering = nerf.render(cameras, rng, RenderOptions(shading="lambertian"))
    assert rendering.image.shape == rendering.albedo.shape == rendering.normal.shape == (3, 3, 10, 14)
    for name in ("opacity", "depth", "depth_variance", "orientation"):
        assert getattr(rendering, name).shape == (3, 1, 10, 14)
    assert all(value.device.type == device.type for value in images(rendering).values())
    for name in ("image", "opacity", "albedo"):
        assert getattr(rendering, name).min() >= 0
        assert getattr(rendering, name).max() <= 1 + 1e-5
    assert (rendering.normal.norm(dim=1, keepdim=True) <= rendering.opacity + 1e-5).all()
    assert rendering.depth_variance.min() > -1e-5
    assert rendering.samples_per_ray.shape == () and rendering.samples_per_ray > 1


@pytest.mark.parametrize(("normals", "changes"), [
    ("analytic", {}), ("finite_difference", {}), ("finite_difference", {"prune_alpha": 0.05, "hidden_layers": 2}),
    ("analytic", {"prune_alpha": 0.05})])  # fmt: skip
def test_kernels_render_and_give_gradients_like_the_torch_reference(
    normals: str, changes: dict[str, float], fast_backend: tuple[str, torch.device]
) -> None:
    """Every channel of a shaded view and every parameter's gradient, from the same field."""
    backend, device = fast_backend
    found = {}
    for name in ("torch", backend):
        nerf = make_nerf(replace(SMALL, normals=normals, **changes), name)
        torch.nn.init.normal_(nerf.field.encoding.table, std=0.3, generator=torch.Generator().manual_seed(1))
        nerf, rng = nerf.to(device), torch.Generator().manual_seed(5)
        nerf.update(0, rng)
        rendering = nerf.render(orbit(2, 13), rng, RenderOptions(shading="lambertian", normals=True))
        assert rendering.samples_per_ray > 2
        generator = torch.Generator().manual_seed(7)
        loss = sum((value * torch.randn(value.shape, generator=generator).to(device)).sum()
                   for value in images(rendering).values())  # fmt: skip
        loss.backward()
        gradients = {key: parameter.grad for key, parameter in nerf.named_parameters()}
        found[name] = {key: value.detach() for key, value in images(rendering).items()}, gradients
    for part, tolerance in ((0, 1e-5), (1, 1e-4)):
        for key, expected in found["torch"][part].items():
            assert expected.abs().max() > 0, key
            difference = (found[backend][part][key] - expected).norm()
            assert difference <= tolerance * expected.norm(), f"{key}: {difference / expected.norm():.1e}"


def test_normals_only_when_asked() -> None:
    nerf, cameras = make_nerf(), orbit(1, 6)
    plain = nerf.render(cameras)
    assert plain.normal is None
    assert plain.orientation is None
    assert plain.albedo is None
    assert nerf.render(cameras, options=RenderOptions(normals=True)).normal is not None
    assert nerf.render(cameras, options=RenderOptions(normals=True)).albedo is None


def test_normals_as_colours_are_composited() -> None:
    nerf = make_nerf(replace(SMALL, density_blob_scale=200.0, normals="finite_difference"))
    cameras = orbit(2, 12)
    black = RenderOptions(torch.zeros(2, 3), shading="normals", normals_above=0.0)
    seen = nerf.render(cameras, options=black)
    torch.testing.assert_close(seen.image, (seen.normal + seen.opacity) / 2, atol=1e-5, rtol=1e-5)
    seen.image.sum().backward()
    assert nerf.field.encoding.table.grad.abs().max() > 0


def test_blob_faces_the_camera() -> None:
    nerf = make_nerf(replace(SMALL, density_blob_scale=200.0))
    rendering = nerf.render(orbit(4, 9), options=RenderOptions(normals=True))
    towards = orbit(4, 9).positions / 2.5
    centre = rendering.normal[:, :, 4, 4]
    assert (torch.nn.functional.normalize(centre, dim=-1) * towards).sum(-1).min() > 0.97
    assert rendering.orientation.max() < 0.01


def test_a_light_brightens_the_side_that_faces_it() -> None:
    nerf = make_nerf(replace(SMALL, density_blob_scale=200.0))
    cameras = orbit(1, 24)
    shading = RenderOptions(shading="lambertian", ambient=0.0)

    def brightness(light: torch.Tensor) -> float:
        rendering = nerf.render(replace(cameras, light=light), options=shading)
        return float((rendering.image * rendering.opacity).detach().sum())

    front = cameras.positions
    assert brightness(3 * front) > 2 * brightness(-3 * front)
    # Only the light's direction counts: a quarter of the way around is between.
    side = torch.stack([-front[:, 1], front[:, 0], front[:, 2]], dim=-1)
    assert brightness(-3 * front) < brightness(3 * side) < brightness(3 * front)
    # A light close to the surface leaves the rim dark, which it does not reach.
    assert brightness(0.25 * front) < 0.5 * brightness(3 * front)


@pytest.mark.parametrize("normals", ["analytic", "finite_difference"])
def test_training_with_shading_and_normals_gives_finite_gradients(normals: str, rng: torch.Generator) -> None:
    nerf = make_nerf(replace(SMALL, normals=normals))
    rendering = nerf.render(orbit(2, 12), rng, RenderOptions(shading="textureless"))
    loss = rendering.image.sum() + rendering.depth_variance.sum() + rendering.orientation.sum()
    (loss + rendering.depth.sum() + rendering.normal.sum()).backward()
    for name in ("encoding", "network"):
        for parameter in nerf.parameter_groups()[name]:
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().max() > 0


def test_orientation_trains_normals_and_not_weights(rng: torch.Generator) -> None:
    """Analytic normals are not differentiable, so there the penalty has no gradient."""
    for normals, moves in (("analytic", False), ("finite_difference", True)):
        nerf = make_nerf(replace(SMALL, normals=normals))
        torch.nn.init.normal_(nerf.field.encoding.table)
        orientation = nerf.render(orbit(2, 12), rng, RenderOptions(normals=True)).orientation
        assert orientation.max() > 1e-3
        assert orientation.requires_grad == moves
        if moves:
            orientation.sum().backward()
            assert nerf.field.encoding.table.grad.abs().max() > 0


def test_backends_render_the_same(rng: torch.Generator) -> None:
    reference, fast = make_nerf(backend="torch"), make_nerf(backend="numba")
    torch.nn.init.normal_(reference.field.encoding.table)
    fast.load_state_dict(reference.state_dict())
    cameras = orbit(2, 13)
    for seed in (None, 3):
        views = [
            images(
                nerf.render(
                    cameras,
                    None if seed is None else torch.Generator().manual_seed(seed),
                    RenderOptions(shading="lambertian"),
                )
            )
            for nerf in (reference, fast)
        ]
        for name, expected in views[0].items():
            torch.testing.assert_close(views[1][name], expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("shading", ["albedo", "lambertian"])
def test_pruned_samples_keep_the_encoding_that_they_were_pruned_with(
    shading: str, implementation: tuple[str, torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same views and gradients as encoded again, as chunks do; kernels encode each sample once."""
    backend, device = implementation
    nerf = make_nerf(replace(SMALL, normals="analytic", prune_alpha=0.05), backend).to(device)
    torch.nn.init.normal_(nerf.field.encoding.table, std=0.3, generator=torch.Generator().manual_seed(1))
    nerf.update(0, torch.Generator().manual_seed(5))
    monkeypatch.setattr("nfsd3d.generators.nerf.field.POINTS_PER_CHUNK", 300)  # several parts of the network's input
    encoded, encode = [], HashEncoding.forward
    monkeypatch.setattr(HashEncoding, "forward", lambda self, x: encoded.append(len(x)) or encode(self, x))
    found = []
    for count in (None, 10**6):
        encoded.clear()
        view = nerf.render(
            orbit(2, 13), torch.Generator().manual_seed(3), RenderOptions(shading=shading, rays_per_chunk=count)
        )
        samples = int(view.samples_per_ray * 2 * 13 * 13 + 0.5)
        met = [number for number in encoded if number >= samples]  # normals of visible samples are fewer
        (view.image.square().sum() + view.depth_variance.sum()).backward()
        gradients = [parameter.grad for parameter in nerf.parameters()]
        nerf.zero_grad()
        found.append(([view.image.detach(), view.depth_variance.detach(), *gradients], met, samples))
    (known, once, kept), (again, twice, _) = found
    assert 0 < kept < once[0], "nothing was pruned"
    # The reference has no backward pass of its own for the table, and takes over nothing.
    assert twice == [once[0], kept] and once == (twice if backend == "torch" else twice[:1])
    for value, expected in zip(known, again, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(value, expected, atol=1e-6 * float(expected.abs().max()), rtol=1e-5)


@pytest.mark.parametrize("prune_alpha", [0.0, 0.01])
def test_a_view_rendered_in_chunks_is_the_whole_view(prune_alpha: float) -> None:
    nerf = make_nerf(replace(SMALL, normals="analytic", prune_alpha=prune_alpha))
    cameras = orbit(3, 11)
    whole = nerf.render(cameras, options=RenderOptions(shading="lambertian"))
    parts = nerf.render_in_chunks(cameras, RenderOptions(shading="lambertian", rays_per_chunk=50))
    assert parts.orientation is None
    for name, expected in images(replace(whole, orientation=None)).items():
        found = images(parts)[name]
        assert not found.requires_grad
        torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("shading", "normals"), [("albedo", "analytic"), ("lambertian", "analytic"),
                                                 ("textureless", "finite_difference")])  # fmt: skip
def test_training_views_in_chunks_have_the_same_gradient(shading: str, normals: str) -> None:
    cameras, colours, replaced = orbit(3, 11), torch.rand(3, 3), torch.tensor([True, False, True])
    results = []
    for count in (None, 10**6, 181):  # 3 * 11 * 11 = 2 * 181 + 1: the last chunk has one ray
        nerf = make_nerf(replace(SMALL, normals=normals, max_samples=6000))
        torch.nn.init.normal_(nerf.field.encoding.table, std=0.1)
        rng = torch.Generator().manual_seed(5)
        options = RenderOptions(colours, replaced, shading, normals=True, rays_per_chunk=count)
        rendering = nerf.render(cameras, rng, options)
        factors = torch.Generator().manual_seed(6)
        values = {name: value for name, value in images(rendering).items() if value.requires_grad}
        sum((value * torch.randn(value.shape, generator=factors)).sum() for value in values.values()).backward()
        gradients = {name: parameter.grad for name, parameter in nerf.named_parameters()}
        results.append((images(rendering), gradients, rng.get_state()))
    whole, large, chunks = results
    assert whole[0]["samples_per_ray"] * 3 * 11 * 11 <= 6000  # the cap holds for the whole view, chunks or not
    assert all(torch.equal(large[0][name], value) for name, value in whole[0].items())
    for name, expected in whole[0].items():
        torch.testing.assert_close(chunks[0][name], expected, atol=1e-4, rtol=1e-4)
    for name, expected in whole[1].items():
        assert expected.abs().max() > 0
        torch.testing.assert_close(chunks[1][name], expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)
    assert torch.equal(chunks[2], whole[2])


@pytest.mark.parametrize("normals", ["analytic", "finite_difference"])
def test_chunks_keep_less_for_the_backward_pass(normals: str) -> None:
    kept = {}
    for count in (None, 100):
        nerf, seen = make_nerf(replace(SMALL, normals=normals)), {}

        def keep(tensor: torch.Tensor, seen: dict = seen) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            rendering = nerf.render(orbit(2, 24), options=RenderOptions(shading="lambertian", rays_per_chunk=count))
        kept[count] = sum(seen.values())
        assert rendering.image.requires_grad
    assert kept[100] < 0.1 * kept[None]


def test_jitter_comes_from_rng_alone() -> None:
    nerf, cameras = make_nerf(), orbit(1, 9)
    still = [nerf.render(cameras).image for _ in range(2)]
    moved = [nerf.render(cameras, torch.Generator().manual_seed(seed)).image for seed in (1, 1, 2)]
    assert torch.equal(*still)
    assert torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0], moved[2])
    assert not torch.equal(moved[0], still[0])


@pytest.mark.parametrize("density", [0.1, 0.7, 4.0])
def test_depth_and_its_variance_are_those_of_the_visible_part(density: float) -> None:
    """A medium of constant density in the half of the cube that faces the camera, of whatever opacity."""
    nerf = make_nerf(replace(SMALL, density_blob_scale=0.0, samples_per_ray=400))
    original = nerf.field.forward

    def constant(positions: torch.Tensor, **options: bool):
        sample = original(positions, **options)
        return replace(sample, density=torch.full_like(sample.density, density))

    nerf.field.forward = constant
    nerf.occupancy.occupied[: SMALL.occupancy_resolution // 2] = False  # x < 0
    with torch.no_grad():
        rendering = nerf.render(orbit(1, 41, elevation_deg=0.0))  # from +x, at a distance of 2.5
    s = torch.linspace(0, 1, 10_001)
    seen = (-density * s).exp()
    mean = (s * seen).sum() / seen.sum()
    variance = (s.square() * seen).sum() / seen.sum() - mean.square()
    assert float(rendering.opacity[0, 0, 20, 20]) == pytest.approx(1 - float(seen[-1]), abs=0.01)
    assert float(rendering.depth[0, 0, 20, 20]) == pytest.approx(1.5 + float(mean), abs=0.01)
    assert float(rendering.depth_variance[0, 0, 20, 20]) == pytest.approx(float(variance), abs=0.005)


@pytest.mark.parametrize("background", ["learned", "color"])
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_nothing_to_see_is_background_with_zero_gradients(backend: str, background: str, rng: torch.Generator) -> None:
    nerf = make_nerf(replace(SMALL, background=background), backend)
    nerf.occupancy.occupied.zero_()
    cameras = orbit(2, 7)
    own = nerf.render(cameras, rng)
    if background == "color":
        torch.testing.assert_close(own.image, torch.ones(2, 3, 7, 7))
    colours = torch.rand(2, 3)
    rendering = nerf.render(cameras, rng, RenderOptions(background=colours, shading="lambertian"))
    torch.testing.assert_close(rendering.image, colours[:, :, None, None].expand(2, 3, 7, 7))
    assert rendering.opacity.abs().max() == 0
    assert rendering.depth_variance.abs().max() == 0
    torch.testing.assert_close(rendering.depth, torch.full((2, 1, 7, 7), 2.5))
    assert rendering.samples_per_ray == 0
    sum(value.sum() for value in images(rendering).values()).backward()
    for name in ("encoding", "network"):
        for parameter in nerf.parameter_groups()[name]:
            assert parameter.grad is not None
            assert parameter.grad.abs().max() == 0


@pytest.mark.parametrize("background", ["learned", "color"])
def test_views_that_are_not_replaced_keep_the_scenes_own_background(background: str, rng: torch.Generator) -> None:
    nerf = make_nerf(replace(SMALL, background=background))
    cameras, colours = orbit(3, 7), torch.rand(3, 3, generator=rng)
    own, plain = nerf.render(cameras).image, nerf.render(cameras, options=RenderOptions(background=colours)).image
    assert all(not torch.equal(a, b) for a, b in zip(own, plain, strict=True))
    for replaced in ([True, False, True], [False, True, True], [True] * 3, [False] * 3):
        mask = torch.tensor(replaced)
        mixed = nerf.render(cameras, options=RenderOptions(background=colours, replaced=mask)).image
        assert torch.equal(mixed, torch.where(mask[:, None, None, None], plain, own))


def test_a_fully_replaced_background_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    nerf, cameras, colours = make_nerf(), orbit(2, 5), torch.rand(2, 3)
    seen = []
    monkeypatch.setattr(nerf.background, "forward", lambda directions: seen.append(1) or directions.abs())
    nerf.render(cameras, options=RenderOptions(background=colours, replaced=torch.tensor([True, True])))
    assert seen == []
    nerf.render(cameras, options=RenderOptions(background=colours, replaced=torch.tensor([True, False])))
    assert seen == [1]


@pytest.mark.parametrize("distance", [0.0, 0.3, 1.2, 50.0])
def test_cameras_inside_the_cube_and_far_away(distance: float, rng: torch.Generator) -> None:
    nerf = make_nerf()
    rendering = nerf.render(orbit(2, 9, distance=max(distance, 1e-4)), rng, RenderOptions(normals=True))
    rendering.image.sum().backward()
    assert all(value.isfinite().all() for value in images(rendering).values())
    assert all(parameter.grad.isfinite().all() for parameter in nerf.parameters())


def test_a_scene_of_low_density_everywhere_and_a_solid_cube_give_finite_gradients(rng: torch.Generator) -> None:
    for scale, opaque in ((-3.0, False), (1e4, True)):
        nerf = make_nerf(replace(SMALL, density_blob_scale=scale, density_blob_std=1e6))
        cameras = orbit(2, 9)
        rendering = nerf.render(cameras, rng, RenderOptions(normals=True))
        near, far = intersect_cube(cameras.rays(), 1.0)
        seen = rendering.opacity.permute(0, 2, 3, 1).reshape(-1)[far - near > 0.2]
        assert (seen > 0.99).all() == opaque
        (rendering.image.sum() + rendering.depth_variance.sum()).backward()
        assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in nerf.parameters())


def test_max_samples_is_honoured_in_training_views(rng: torch.Generator) -> None:
    cameras = orbit(2, 20)
    free = make_nerf().render(cameras, rng)
    capped = make_nerf(replace(SMALL, max_samples=5000)).render(cameras, rng)
    rays = 2 * 20 * 20
    assert free.samples_per_ray * rays > 5000
    assert 4000 < capped.samples_per_ray * rays <= 5000
    torch.testing.assert_close(capped.opacity, free.opacity, atol=0.15, rtol=0)
    with pytest.raises(InputError, match=r"generator\.max_samples=10 "):
        make_nerf(replace(SMALL, max_samples=10)).render(cameras, rng)


def test_update_follows_the_interval(rng: torch.Generator) -> None:
    nerf = make_nerf()
    nerf.update(1, rng)
    assert nerf.occupancy.occupied.float().mean() == 1
    nerf.update(0, rng)
    assert 0 < nerf.occupancy.occupied.float().mean() < 0.5
    assert not nerf.occupancy.density.requires_grad


def test_state_dict_round_trip(rng: torch.Generator) -> None:
    nerf = make_nerf()
    torch.nn.init.normal_(nerf.field.encoding.table)
    nerf.update(0, rng)
    torch.manual_seed(99)
    other = NeRF(SMALL, field_backend="torch", sampler_backend="torch")
    other.load_state_dict(nerf.state_dict())
    cameras = orbit(2, 9)
    torch.testing.assert_close(other.render(cameras).image, nerf.render(cameras).image, atol=1e-5, rtol=1e-4)
    assert torch.equal(other.occupancy.occupied, nerf.occupancy.occupied)


def test_parameter_groups_hold_every_parameter_once() -> None:
    for background in ("learned", "color"):
        nerf = make_nerf(replace(SMALL, background=background))
        groups = nerf.parameter_groups()
        assert list(groups) == ["encoding", "network", "background"]
        grouped = [id(parameter) for parameters in groups.values() for parameter in parameters]
        assert sorted(grouped) == sorted(id(parameter) for parameter in nerf.parameters())


def test_export_functions_agree_with_the_field(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    nerf = make_nerf()
    torch.nn.init.normal_(nerf.field.encoding.table)
    x = torch.rand(1000, 3, generator=rng) * 2 - 1
    monkeypatch.setattr("nfsd3d.generators.nerf.nerf.POINTS_PER_CHUNK", 300)
    sample = nerf.field(x)
    torch.testing.assert_close(nerf.density(x), sample.density)
    torch.testing.assert_close(nerf.albedo(x), sample.albedo)
    torch.testing.assert_close(nerf.normals(x), nerf.field.analytic_normals(x))
    assert not nerf.density(x).requires_grad
    assert nerf.density(x[:0]).shape == (0,)
    assert nerf.normals(x[:0]).shape == (0, 3)


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("trained", [True, False])
def test_a_rendering_with_normals_leaves_no_tensors_behind(backend: str, trained: bool) -> None:
    nerf = make_nerf(replace(SMALL, normals="analytic"), backend)

    def render() -> None:
        with torch.set_grad_enabled(trained):
            nerf.render(orbit(1, 8), None, RenderOptions(normals=True, shading="lambertian", ambient=0.1))

    def tensors() -> int:
        gc.collect()
        # Not isinstance: it would look into lazy modules of other libraries.
        return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())

    render()
    before = tensors()
    for _ in range(3):
        render()
    assert tensors() == before
