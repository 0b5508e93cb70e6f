"""The world of shapes: geometry, renders, patterns, grammar, degradations."""

import math
import re

import pytest
import torch

from nfsd3d.settings.prompt_texts import FINE_VIEW_WORDS, VIEW_WORDS
from nfsd3d.shapes.world.degrade import DEGRADATIONS, NEGATIVE_WORDS, OTHER_WORDS, degrade
from nfsd3d.shapes.world.grammar import (
    COLORS,
    PATTERNS,
    QUALITY,
    Composition,
    held_out,
    parse_prompt,
    sample_caption,
    sample_composition,
    view_name,
    view_phrases,
)
from nfsd3d.shapes.world.objects import BOUND, OBJECTS
from nfsd3d.shapes.world.render import render_views
from nfsd3d.shapes.world.scene import WORLD_CAMERAS, image_caption, sample_images
from nfsd3d.views.cameras import orbit, sample_cameras


def test_the_world_has_enough_objects_colours_and_patterns():
    assert len(OBJECTS) >= 16
    assert sum(shape.has_front for shape in OBJECTS.values()) >= 8
    assert len(COLORS) >= 10
    assert set(PATTERNS) == {"plain", "striped", "checkered", "dotted"}


@pytest.mark.parametrize("name", OBJECTS)
def test_distances_are_safe_for_sphere_tracing(name, rng):
    shape = OBJECTS[name]
    points = torch.rand(20_000, 3, generator=rng) * 2.4 - 1.2
    distance = shape.distance(points)
    # Inside somewhere, and nothing sticks out of the bounding ball.
    assert (distance < 0).any()
    assert points[distance < 0].norm(dim=-1).max() < BOUND
    # A step of the distance, in any direction, never jumps over the surface.
    for _ in range(8):
        step = torch.nn.functional.normalize(torch.randn(points.shape, generator=rng), dim=-1)
        reached = shape.distance(points + step * distance.clamp_min(0)[:, None])
        assert reached[distance > 0].min() > -0.02


@pytest.mark.parametrize("name", OBJECTS)
def test_a_front_is_where_left_and_right_or_front_and_back_differ(name):
    shape = OBJECTS[name]
    points = torch.rand(40_000, 3, generator=torch.Generator().manual_seed(1)) * 1.9 - 0.95
    turned = points * points.new_tensor([-1, -1, 1])  # half a turn about z
    differs = ((shape.distance(points) < 0) != (shape.distance(turned) < 0)).float().mean()
    assert (differs > 1e-4) == shape.has_front


def test_sphere_renders_as_its_closed_form():
    cameras = orbit(4, 64, elevation_deg=20, distance=2.5, fovy_deg=45)
    views = render_views([Composition("sphere", "plain", "red")] * 4, cameras, torch.zeros(4, 3, 64, 64))
    # The silhouette of a ball of radius r at distance d is a disc of tan(asin(r / d)) / tan(fovy / 2) half heights.
    radius = math.tan(math.asin(0.72 / 2.5)) / math.tan(math.radians(22.5)) * 32
    assert views.mask.sum((1, 2, 3)).allclose(torch.full((4,), math.pi * radius**2), rtol=0.01)
    assert views.depth[:, 0, 31:33, 31:33].mean().item() == pytest.approx(2.5 - 0.72, abs=0.01)


def test_renders_agree_with_slow_ray_marching(rng):
    cameras = sample_cameras(rng, 2, 24, WORLD_CAMERAS)
    for name in ("house", "car", "mug"):
        views = render_views(
            [Composition(name, "plain", "blue")] * 2, cameras, torch.zeros(2, 3, 24, 24), supersample=1
        )
        rays = cameras.rays()
        t = torch.linspace(1.0, 4.0, 1500)
        points = rays.origins[:, None] + rays.directions[:, None] * t[:, None]
        inside = OBJECTS[name].distance(points) < 0
        hit = inside.any(-1).reshape(2, 1, 24, 24).float()
        first = t[inside.float().argmax(-1)].reshape(2, 1, 24, 24)
        assert (hit - views.mask).abs().mean() < 0.01
        both = (hit > 0) & (views.mask > 0)
        assert (first - views.depth)[both].abs().median() < 0.01


def test_front_is_seen_from_azimuth_zero():
    cameras = orbit(2, 64, elevation_deg=10, start_deg=0)
    views = render_views([Composition("snowman", "plain", "white")] * 2, cameras, torch.zeros(2, 3, 64, 64))
    dark = ((views.image.amax(1, keepdim=True) < 0.2) & (views.mask > 0.99)).sum((1, 2, 3))
    assert dark[0] > 15  # eyes and buttons
    assert dark[1] == 0


@pytest.mark.parametrize("pattern", ["striped", "checkered", "dotted"])
def test_patterns_show_both_colors(pattern):
    cameras = orbit(6, 64, elevation_deg=15)
    for name in ("sphere", "cube", "cylinder"):
        composition = Composition(name, pattern, "red", "white")
        views = render_views([composition] * 6, cameras, torch.zeros(6, 3, 64, 64))
        white = (views.image[:, 1:2] > 0.6 * views.image[:, 0:1]) & (views.mask > 0.99)
        share = white.float().sum() / (views.mask > 0.99).sum()
        assert (0.1 if pattern == "dotted" else 0.35) < share < (0.45 if pattern == "dotted" else 0.65)


def test_rendering_needs_one_object():
    cameras = orbit(2, 8)
    with pytest.raises(ValueError, match="one object"):
        render_views(
            [Composition("cube", "plain", "red"), Composition("cone", "plain", "red")], cameras, torch.zeros(2, 3, 8, 8)
        )


def test_held_out_compositions_are_never_drawn(rng):
    reserved = set(held_out())
    assert len(reserved) >= 48
    assert {composition.object for composition in reserved} == set(OBJECTS)
    assert parse_prompt("a red and white dotted mushroom") in reserved
    drawn = {sample_composition(rng) for _ in range(100_000)}
    assert not drawn & reserved
    everything = len(OBJECTS) * (len(COLORS) + 3 * len(COLORS) * (len(COLORS) - 1))
    assert len(drawn) > 0.95 * (everything - len(reserved))


def test_prompts_round_trip(rng):
    for composition in [*held_out(), *(sample_composition(rng) for _ in range(200))]:
        assert parse_prompt(composition.prompt) == composition


def test_captions_name_their_composition(rng):
    for index in range(1000):
        composition = sample_composition(rng)
        azimuth, elevation = (torch.rand(2, generator=rng) * torch.tensor([360, 90])).tolist()
        background = ("", "a white background", "a light blue background")[index % 3]
        words = ((), ("sharp",), ("blurry", "low contrast"), ("detailed", "high quality"))[index % 4]
        caption = sample_caption(rng, composition, view_phrases(azimuth, elevation), background, words)
        assert parse_prompt(caption) == composition


@pytest.mark.parametrize(
    "text",
    [
        "a 3D render of a red rocket, side view",
        "a DSLR photo of a red rocket",
        "a zoomed out DSLR photo of a red rocket",
        "A side view of a detailed red rocket.",
        "red rocket, back left view slightly from above, high quality",
        "a high resolution image of a plain red rocket on a plain white background, sharp",
    ],
)
def test_prompts_in_common_forms_name_their_composition(text):
    assert parse_prompt(text) == Composition("rocket", "plain", "red")


@pytest.mark.parametrize("view", (*VIEW_WORDS, *FINE_VIEW_WORDS))
def test_prompts_may_end_in_any_view_words(view):
    expected = Composition("mushroom", "dotted", "red", "white")
    assert parse_prompt(f"a red mushroom with white dots, {view}") == expected


@pytest.mark.parametrize(
    "text",
    [
        "a mushroom",
        "a red and white dotted mushroom!",
        "a mauve cube",
        "a red and red dotted cube",
        "a photo of a corgi",
        "a red rocket next to a blue cube",
        "a corgi on a picture of a red rocket",
        "a stone statue of a red rocket",
        "a red rocket, made of chocolate",
        "",
    ],
)
def test_texts_outside_the_grammar_are_refused(text):
    with pytest.raises(ValueError):
        parse_prompt(text)


def test_view_names():
    assert view_name(0, 0) == view_name(44, 10) == view_name(-44, 59) == view_name(360, 0) == "front"
    assert view_name(46, 0) == view_name(-134, 0) == view_name(270, 0) == "side"
    assert view_name(136, 0) == view_name(-180, 0) == view_name(180, 30) == "back"
    assert view_name(0, 61) == view_name(170, 90) == "overhead"


def test_captions_describe_the_image(rng):
    seen_orders = set()
    for _ in range(500):
        composition = sample_composition(rng)
        caption = sample_caption(rng, composition, ("side view",), "a gray background", ("sharp",))
        words = set(re.findall(r"[a-z]+", caption.lower()))
        assert {composition.object, composition.color, "gray", "sharp"} <= words
        assert not composition.second or composition.second in words
        assert not words & ({"front", "back", "overhead"} | set(OBJECTS) - {composition.object})
        seen_orders.add(re.sub("|".join(COLORS), "C", caption.replace(composition.object, "O")))
    assert len(seen_orders) > 60


def test_bad_words_only_caption_degraded_images(rng):
    bad = [*NEGATIVE_WORDS, *OTHER_WORDS]
    for _ in range(300):
        composition = sample_composition(rng)
        clean = image_caption(rng, composition, ("front view",), "", ())
        assert not any(re.search(rf"\b{word}\b", clean) for word in bad)
        words = ("blurry", "low contrast")
        caption = image_caption(rng, composition, ("front view",), "", words)
        assert all(word in caption for word in words)
    assert not set(QUALITY) & set(bad)


@pytest.fixture(scope="module")
def clean_images():
    samples = sample_images(torch.Generator().manual_seed(5), "house", 8, 64)
    return [sample.image for sample in samples if not sample.words]


@pytest.mark.parametrize("word", DEGRADATIONS)
def test_degradations_are_visible_and_mild(word, rng, clean_images):
    for image in clean_images:
        changed = degrade(image, (word,), rng)
        assert changed.shape == image.shape and changed.min() >= 0 and changed.max() <= 1
        assert 0.003 < (changed - image).square().mean().sqrt() < 0.35


def test_images_are_reproducible():
    first, second = (sample_images(torch.Generator().manual_seed(3), "bird", 4, 32) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.image.equal(b.image) and a.composition == b.composition and a.words == b.words
