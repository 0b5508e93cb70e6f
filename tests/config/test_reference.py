"""The documentation of settings."""

import runpy
from pathlib import Path
from types import SimpleNamespace

from nfsd3d.config.schema import known_keys

SCRIPT = Path(__file__).parents[2] / "scripts" / "settings_reference.py"
reference = SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_every_setting_is_documented_on_one_line():
    groups = reference.all_groups()
    settings = [setting for group in groups for setting in group.settings]
    assert {setting.key for setting in settings} | {group.key for group in groups} - {""} == set(known_keys())
    assert len(settings) > 100
    for setting in settings:
        assert setting.type and "\n" not in setting.description
        assert setting.description.endswith(".") and len(setting.description) > 12
    assert all(group.description for group in groups)


def test_types_are_described_in_words():
    types = {setting.key: setting.type for group in reference.all_groups() for setting in group.settings}
    assert types["train.steps"] == "whole number > 0"
    assert types["train.random_background"] == "number in [0, 1]"
    assert types["train.t_max"] == "number or schedule, in [0, 1]"
    assert types["cameras.distance"] == "[a, b], each a number > 0"
    assert types["prompts.views"] == "coarse, fine"
    assert types["prior.vae"] == "text or null"
    assert types["export.threshold"] == "auto or number > 0"


def test_the_committed_reference_is_up_to_date():
    assert reference.TARGET.read_text(encoding="utf-8") == reference.reference_markdown(), (
        "run python scripts/settings_reference.py"
    )
