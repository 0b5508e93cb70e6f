import json

import pytest

from nfsd3d.errors import InputError
from nfsd3d.prior.files.locate import EMBEDDED
from nfsd3d.prior.vocabulary import check_prompt, load_vocabulary, words_of
from nfsd3d.settings.prompt_texts import VIEW_WORDS
from nfsd3d.views.prompts import PAPER_NEGATIVE_PROMPT

WORDS = ["a", "red", "and", "white", "dotted", "mushroom", "house", "mouse", "low", "resolution", "view", "front"]


@pytest.fixture
def folder(tmp_path):
    content = {"words": WORDS, "groups": {"objects": ["mushroom", "house", "mouse"], "colors": ["red", "white"]}}
    (tmp_path / "vocabulary.json").write_text(json.dumps(content))
    return tmp_path


def test_words_are_lower_case_runs_of_letters_or_digits():
    assert words_of("A low-resolution, Red_and 2 white: mushroom!") == [
        *("a", "low", "resolution", "red", "and", "2", "white", "mushroom"),
    ]
    assert words_of("Größe ${x} 'it'") == ["größe", "x", "it"]
    assert words_of("a 3D render, 16x9") == ["a", "3", "d", "render", "16", "x", "9"]
    assert words_of("?!, ...") == []


def test_known_words_pass_in_any_case_and_punctuation(folder):
    check_prompt(folder, "A red-and-white, DOTTED mushroom (front view)!")
    check_prompt(folder, "")


def test_unknown_words_are_named_with_their_neighbours(folder):
    with pytest.raises(InputError) as error:
        check_prompt(folder, "a red muschroom and a zyx")
    message = str(error.value)
    assert message.startswith("prompt: the prior does not know 'muschroom' (did you mean mushroom?), 'zyx';")
    assert str(folder / "vocabulary.json") in message and "prior=sd21" in message
    assert "it knows the objects mushroom, house, mouse; the colors red, white;" in message
    assert "'red'" not in message and "\n" not in message


def test_the_embedded_prior_lists_its_objects_and_suggests_nothing_far_fetched():
    with pytest.raises(InputError, match=r"not know 'hat', 'dragon'; it knows the objects sphere, .*robot; the colors"):
        check_prompt(EMBEDDED, "a hat on a dragon")


def test_the_setting_is_named(folder):
    with pytest.raises(InputError, match=r"^negative_prompt: .*'ugly'"):
        check_prompt(folder, "ugly", setting="negative_prompt")


def test_a_flood_of_unknown_words_stays_one_readable_line(folder):
    with pytest.raises(InputError, match="and 2496 more") as error:
        check_prompt(folder, " ".join(f"{i}w" for i in range(2500)))
    assert len(str(error.value)) < 600
    with pytest.raises(InputError) as error:
        check_prompt(folder, "x" * 10_000)
    assert len(str(error.value)) < 600


def test_text_without_words_is_refused(folder):
    with pytest.raises(InputError, match="has no word"):
        check_prompt(folder, "?!")


def test_a_model_without_the_file_takes_any_text(tmp_path):
    assert load_vocabulary(tmp_path) is None
    check_prompt(tmp_path, "an oil painting of a zyx?!")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"words": 1, "groups": {}}', '{"words": [], "groups": 3}'])
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "vocabulary.json").write_text(content)
    with pytest.raises(InputError, match=r"vocabulary\.json"):
        check_prompt(tmp_path, "a red house")


def test_groups_are_read(folder):
    vocabulary = load_vocabulary(folder)
    assert vocabulary.groups == {"objects": ("mushroom", "house", "mouse"), "colors": ("red", "white")}
    assert vocabulary.words == set(WORDS)


def test_the_papers_negative_prompt_and_the_view_words_split_into_plain_words():
    assert all(word.isalpha() for word in words_of(" ".join([PAPER_NEGATIVE_PROMPT, *VIEW_WORDS])))
    assert {"low", "resolution", "gloomy"} <= set(words_of(PAPER_NEGATIVE_PROMPT))
