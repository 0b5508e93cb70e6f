import math
from dataclasses import replace

import pytest
import torch
from small_settings import PROMPTS

from nfsd3d.context import Context
from nfsd3d.errors import InputError
from nfsd3d.shapes.world.grammar import view_phrases
from nfsd3d.views.cameras import Cameras, orbit
from nfsd3d.views.prompts import (
    BACK,
    FINE_VIEW_WORDS,
    FRONT,
    OVERHEAD,
    PAPER_NEGATIVE_PROMPT,
    SIDE,
    PromptBank,
    fine_view_index,
    perp_neg_mixture,
    perp_neg_weights,
    view_index,
)


class Recorder:
    """Embeds the i-th prompt as the constant i, and records its prompts."""

    def embed(self, prompts, negative):
        self.prompts = prompts
        return Context.of(torch.arange(len(prompts), dtype=torch.float32)[:, None, None].expand(-1, 3, 2))


def values_of(context):
    return context.tensors["embeddings"][:, 0, 0].tolist()


def bank_of(embedder, **settings):
    return PromptBank.build(embedder, "a red cube", "ugly", replace(PROMPTS, **settings))


def cameras_at(azimuth_deg, elevation_deg):
    count = len(azimuth_deg)
    ones = torch.ones(count)
    return Cameras(
        azimuth=torch.deg2rad(torch.tensor(azimuth_deg, dtype=torch.float32)),
        elevation=torch.deg2rad(torch.tensor(elevation_deg, dtype=torch.float32)),
        distance=ones,
        fovy=ones,
        light=torch.zeros(count, 3),
        target=torch.zeros(count, 3),
        height=4,
        width=4,
    )


@pytest.mark.parametrize(
    ("azimuth", "elevation", "view"),
    [
        (0, 0, FRONT),
        (44, 0, FRONT),
        (-44, 59, FRONT),
        (46, 0, SIDE),
        (-90, 0, SIDE),
        (134, 0, SIDE),
        (-134, 0, SIDE),
        (136, 0, BACK),
        (180, 0, BACK),
        (-180, 0, BACK),
        (-136, 0, BACK),
        (224, 0, BACK),
        (226, 0, SIDE),
        (316, 0, FRONT),
        (360, 0, FRONT),
        (720 + 90, 0, SIDE),
        (-360 - 170, 0, BACK),
        (0, 61, OVERHEAD),
        (180, 85, OVERHEAD),
        (0, -61, FRONT),
    ],
)
def test_the_view_depends_on_azimuth_and_elevation_at_any_turn(azimuth, elevation, view):
    assert view_index(cameras_at([azimuth], [elevation]), PROMPTS).tolist() == [view]


def test_other_thresholds_give_other_views():
    cameras = cameras_at([50, 50, 100, 0], [0, 35, 0, 0])
    views = view_index(cameras, replace(PROMPTS, front_deg=60, back_deg=90, overhead_deg=30))
    assert views.tolist() == [FRONT, OVERHEAD, BACK, FRONT]


@pytest.mark.parametrize("azimuth", [0, 22, 23, 90, 100, 180, -180, -90, -22, -23, 359, 720 + 45, -360 - 135])
@pytest.mark.parametrize("elevation", [-10, 12, 14, 36, 38, 59, 61, 90])
def test_fine_views_are_those_of_the_embedded_priors_captions(azimuth, elevation):
    index = fine_view_index(cameras_at([azimuth], [elevation]), PROMPTS)
    assert FINE_VIEW_WORDS[index] in view_phrases(azimuth, elevation)


def test_fine_views_name_the_side_that_is_seen():
    # An object that faces +x has its left at +y, which the camera at 90 degrees sees.
    left, right, corner = fine_view_index(cameras_at([90, 270, 315], [0, 20, 50]), PROMPTS).tolist()
    assert FINE_VIEW_WORDS[left] == "left side view at eye level"
    assert FINE_VIEW_WORDS[right] == "right side view slightly from above"
    assert FINE_VIEW_WORDS[corner] == "front right view from above"


def test_fine_views_choose_the_embedding():
    recorder = Recorder()
    bank = bank_of(recorder, views="fine")
    assert recorder.prompts[:25] == [f"a red cube, {view}" for view in FINE_VIEW_WORDS]
    contexts = bank.contexts(cameras_at([0, 90, 10], [0, 20, 80]))
    assert values_of(contexts["cond"]) == [0, 8 + 2, 24]
    assert values_of(contexts["uncond"]) == [25, 25, 25]
    bank_of(recorder, views="fine", view_dependent=False)
    assert recorder.prompts.count("a red cube") == 4


def test_only_the_prompt_has_view_words():
    recorder = Recorder()
    PromptBank.build(recorder, "a red cube", PAPER_NEGATIVE_PROMPT, PROMPTS)
    assert recorder.prompts == [
        "a red cube, front view",
        "a red cube, side view",
        "a red cube, back view",
        "a red cube, overhead view",
        "",
        PAPER_NEGATIVE_PROMPT,
    ]


def test_contexts_follow_the_cameras():
    bank = bank_of(Recorder())
    contexts = bank.contexts(orbit(4, 8))  # azimuths 0, 90, 180, 270
    assert {name: tuple(context.tensors["embeddings"].shape) for name, context in contexts.items()} == dict.fromkeys(
        ("cond", "uncond", "neg"), (4, 3, 2)
    )
    assert values_of(contexts["cond"]) == [FRONT, SIDE, BACK, SIDE]
    assert values_of(contexts["uncond"]) == [4.0] * 4
    assert values_of(contexts["neg"]) == [5.0] * 4


def test_without_view_words_every_camera_gets_the_plain_prompt():
    recorder = Recorder()
    bank_of(recorder, view_dependent=False)
    assert set(recorder.prompts[:4]) == {"a red cube"}


def test_views_cover_the_orbit_in_the_expected_shares():
    views = view_index(orbit(360, 8, start_deg=0.5), PROMPTS)
    counts = [int((views == view).sum()) for view in (FRONT, SIDE, BACK, OVERHEAD)]
    assert counts == [90, 180, 90, 0]
    assert math.isclose(sum(counts), 360)


def test_further_prompts_are_embedded_only_if_needed():
    recorder = Recorder()
    options = {"source_prompt": "a blue cube", "suffixes": (", fine", ", bad")}
    PromptBank.build(recorder, "a red cube", "ugly", PROMPTS, needed=["cond", "uncond"], **options)
    assert len(recorder.prompts) == 6
    bank = PromptBank.build(
        recorder, "a red cube", "ugly", PROMPTS, needed=["plain", "better", "worse", "source_cond"], **options
    )
    assert recorder.prompts[4:] == [
        *("", "ugly"),
        *(f"a red cube, fine, {view} view" for view in ("front", "side", "back", "overhead")),
        "a red cube",
        *(f"a blue cube, {view} view" for view in ("front", "side", "back", "overhead")),
        *(f"a red cube, bad, {view} view" for view in ("front", "side", "back", "overhead")),
    ]
    contexts = {name: values_of(context) for name, context in bank.contexts(orbit(4, 8)).items()}
    assert contexts["better"] == [6, 7, 8, 7]
    assert contexts["plain"] == [10] * 4
    assert contexts["source_cond"] == [11, 12, 13, 12]
    assert contexts["worse"] == [15, 16, 17, 16]


def test_editing_needs_a_source_prompt():
    with pytest.raises(InputError, match=r"source_prompt=null.*say what the source shows"):
        PromptBank.build(Recorder(), "a red cube", "ugly", PROMPTS, needed=["source_cond"])


AZIMUTHS = [0, 30, 90, 135, 180, -30, 270, 360 + 45]
MIXTURES = [
    (1, 0, 0),
    (2 / 3, 1 / 3, 0),
    (0, 1, 0),
    (0, 0.5, 0.5),
    (0, 0, 1),
    (2 / 3, 1 / 3, 0),
    (0, 1, 0),
    (0.5, 0.5, 0),
]


def test_perp_neg_mixes_neighbouring_views():
    mixture = perp_neg_mixture(torch.deg2rad(torch.tensor(AZIMUTHS, dtype=torch.float64)))
    expected = torch.tensor([[*views, 0] for views in MIXTURES], dtype=torch.float64)
    torch.testing.assert_close(mixture, expected, rtol=0, atol=1e-9)


def test_perp_neg_weights_follow_the_curves():
    weights = perp_neg_weights(torch.deg2rad(torch.tensor([0.0, 45, -45, 135, 180], dtype=torch.float64)))

    def curve(a, b, c, r):
        return -(a * math.exp(-b * r) + c)

    expected = [
        [curve(4, 0.5, -2.426, 1), curve(4, 0.5, -2.426, 0)],
        [curve(4, 0.5, -2.426, 0.5), curve(4, 0.5, -2.426, 0.5)],
        [curve(4, 0.5, -2.426, 0.5), curve(4, 0.5, -2.426, 0.5)],
        [curve(1, 0.5, -0.606, 0.5), curve(1, 0.5, 0.967, 0.5)],
        [curve(1, 0.5, -0.606, 0), curve(1, 0.5, 0.967, 0)],
    ]
    torch.testing.assert_close(weights.T, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)
    every = perp_neg_weights(torch.linspace(-7, 7, 500))
    assert (every < 0).all()


def test_perp_neg_contexts_follow_the_cameras():
    bank = PromptBank.build(
        Recorder(),
        "a red cube",
        "ugly",
        replace(PROMPTS, perp_neg=True),
        needed=["source_cond"],
        source_prompt="a blue cube",
    )
    cameras = cameras_at([0, 45, 135, 20], [0, 0, 30, 70])
    contexts = bank.contexts(cameras)
    values = {name: values_of(context) for name, context in contexts.items()}
    assert values["cond"] == pytest.approx([FRONT, 0.5, 1.5, OVERHEAD], abs=1e-6)
    assert values["source_cond"] == pytest.approx([6 + value for value in (FRONT, 0.5, 1.5, OVERHEAD)], abs=1e-5)
    assert values["cond_against_0"][:3] == [FRONT, FRONT, SIDE]
    assert values["cond_against_1"][:3] == [SIDE, SIDE, FRONT]
    assert values["source_cond_against_0"][:3] == [6, 6, 7]
    weights = bank.view_weights(cameras)
    assert (weights[:, :3] < 0).all() and weights[:, 3].tolist() == [0, 0]  # from overhead nothing is moved away from
    assert weights.device.type == "cpu"


def test_perp_neg_of_fine_views_keeps_to_the_height_and_the_side():
    bank = bank_of(Recorder(), perp_neg=True, views="fine")
    cameras = cameras_at([0, 50, 300, 140, 20], [0, 20, 50, 0, 80])
    words = {
        name: [FINE_VIEW_WORDS[int(value)] for value in values_of(context)]
        for name, context in bank.contexts(cameras).items()
        if name.startswith("cond")
    }
    assert words["cond"] == [
        "straight front view at eye level",
        "front left view slightly from above",
        "front right view from above",
        "back left view at eye level",
        "overhead view",
    ]
    assert words["cond_against_0"][:4] == [
        "straight front view at eye level",
        "straight front view slightly from above",
        "straight front view from above",
        "left side view at eye level",
    ]
    assert words["cond_against_1"][1:4] == [
        "left side view slightly from above",
        "right side view from above",
        "straight front view at eye level",
    ]
    assert bank.view_weights(cameras)[:, 4].tolist() == [0, 0]


def test_without_perp_neg_there_are_no_weights():
    bank = bank_of(Recorder())
    assert bank.view_weights(orbit(4, 8)) is None
    assert not any("against" in name for name in bank.contexts(orbit(4, 8)))
