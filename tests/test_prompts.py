import math

import pytest
import torch

from nfsd3d.cameras import Cameras, orbit
from nfsd3d.prompts import BACK, FRONT, OVERHEAD, PAPER_NEGATIVE_PROMPT, SIDE, PromptBank, ViewThresholds


class Recorder:
    """Embeds the i-th prompt as the constant i, and remembers what it was asked."""

    def embed(self, prompts):
        self.prompts = prompts
        return torch.arange(len(prompts), dtype=torch.float32)[:, None, None].expand(-1, 3, 2)


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
def test_view_of_azimuth_and_elevation_at_any_turn(azimuth, elevation, view):
    assert ViewThresholds().view_index(cameras_at([azimuth], [elevation])).tolist() == [view]


def test_thresholds_are_settings():
    cameras = cameras_at([50, 50, 100, 0], [0, 35, 0, 0])
    views = ViewThresholds(front_deg=60, back_deg=90, overhead_deg=30).view_index(cameras)
    assert views.tolist() == [FRONT, OVERHEAD, BACK, FRONT]


def test_only_the_prompt_has_view_words():
    recorder = Recorder()
    PromptBank.build(recorder, "a red cube")
    assert recorder.prompts == [
        "a red cube, front view",
        "a red cube, side view",
        "a red cube, back view",
        "a red cube, overhead view",
        "",
        PAPER_NEGATIVE_PROMPT,
    ]


def test_contexts_follow_the_cameras():
    bank = PromptBank.build(Recorder(), "a red cube", "ugly")
    contexts = bank.contexts(orbit(4, 8))  # azimuths 0, 90, 180, 270
    assert {name: tuple(context.shape) for name, context in contexts.items()} == dict.fromkeys(
        ("cond", "uncond", "neg"), (4, 3, 2)
    )
    assert contexts["cond"][:, 0, 0].tolist() == [FRONT, SIDE, BACK, SIDE]
    assert contexts["uncond"][:, 0, 0].tolist() == [4.0] * 4
    assert contexts["neg"][:, 0, 0].tolist() == [5.0] * 4


def test_without_view_words_every_camera_gets_the_plain_prompt():
    recorder = Recorder()
    PromptBank.build(recorder, "a red cube", view_dependent=False)
    assert set(recorder.prompts[:4]) == {"a red cube"}


def test_views_cover_the_orbit_in_the_expected_shares():
    views = ViewThresholds().view_index(orbit(360, 8, start_deg=0.5))
    counts = [int((views == view).sum()) for view in (FRONT, SIDE, BACK, OVERHEAD)]
    assert counts == [90, 180, 90, 0]
    assert math.isclose(sum(counts), 360)
