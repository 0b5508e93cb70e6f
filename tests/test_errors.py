"""Suggestions for misspelt words."""

import pytest

from nfsd3d.config.schema import known_keys
from nfsd3d.errors import did_you_mean


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("train.stepz", "train.steps"),
        ("steps", "train.steps"),
        ("trian", "train"),
        ("optimizer.betas", "train.betas"),
        ("generator.ocupancy_resolution", "generator.occupancy_resolution"),
        ("prompts.perpneg", "prompts.perp_neg"),
        ("export.texturesize", "export.texture_size"),
    ],
)
def test_a_misspelt_key_gets_the_one_that_was_meant(word, meant):
    assert did_you_mean(word, known_keys()).startswith(f" (did you mean {meant}")


@pytest.mark.parametrize("word", ["train.wandb", "train.foo", "machine.foo", "wandb", "x", "scheduler.kind"])
def test_a_key_that_resembles_none_gets_no_suggestion(word):
    assert did_you_mean(word, known_keys()) == ""


def test_short_words_must_agree_better():
    words = ["a", "at", "hats", "cube", "cone", "tube"]
    assert did_you_mean("hat", words) == " (did you mean hats?)"
    assert did_you_mean("hat", ["at", "a"]) == ""
    assert did_you_mean("dragon", ["orange", "green", "car"]) == ""


def test_a_second_suggestion_resembles_the_whole_word_too():
    assert did_you_mean("nfsdd", ["nfsd", "sds"], ".yaml") == " (did you mean nfsd.yaml?)"
    assert did_you_mean("moose", ["mouse", "house", "red"]) == " (did you mean mouse?)"
