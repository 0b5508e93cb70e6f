"""The documentation of settings."""

from pathlib import Path

import pytest

from nfsd3d.config.reference import all_groups, reference_markdown, setting_lines
from nfsd3d.config.schema import known_keys

REFERENCE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_every_setting_is_documented_on_one_line():
    groups = all_groups()
    settings = [setting for group in groups for setting in group.settings]
    assert {setting.key for setting in settings} | {group.key for group in groups} - {""} == set(known_keys())
    assert len(settings) > 100
    for setting in settings:
        assert setting.type and "\n" not in setting.description
        assert setting.description.endswith(".") and len(setting.description) > 12
    assert all(group.description for group in groups)


def test_types_are_told_in_words():
    types = {setting.key: setting.type for group in all_groups() for setting in group.settings}
    assert types["train.steps"] == "whole number > 0"
    assert types["train.random_background"] == "number in [0, 1]"
    assert types["train.t_max"] == "number or schedule, in [0, 1]"
    assert types["cameras.distance"] == "[a, b], each a number > 0"
    assert types["prompts.views"] == "coarse, fine"
    assert types["prior.vae"] == "text or null"
    assert types["export.threshold"] == "auto or number > 0"


def test_lines_of_a_help_text():
    lines = setting_lines(["prompts.perp_neg", "prior.vae"], width=20)
    assert lines[0].startswith("prompts.perp_neg     Perp-Neg") and lines[1].startswith(
        "prior.vae            Autoencoder"
    )


@pytest.mark.skipif(not REFERENCE.parent.is_dir(), reason="a source distribution has no docs")
def test_the_committed_reference_is_up_to_date():
    assert REFERENCE.read_text(encoding="utf-8") == reference_markdown(), "run python scripts/settings_reference.py"
