"""Tokens are counted as transformers' tokenizer counts them."""

import json
import random
import shutil

import pytest

from nfsd3d.errors import InputError
from nfsd3d.prior.files.count_tokens import read_tokens
from nfsd3d.prior.files.locate import EMBEDDED

SIGNS = "abcdefg XYZ 0123 ,.;:!?'\"-—éüß漢字😀\n\t's"


@pytest.fixture(scope="module")
def embedded():
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(EMBEDDED / "tokenizer"), local_files_only=True)
    return read_tokens(EMBEDDED), tokenizer


def test_any_text_has_the_tokens_of_transformers(embedded):
    counter, tokenizer = embedded
    rng = random.Random(0)
    texts = ["".join(rng.choice(SIGNS) for _ in range(rng.randint(0, 40))) for _ in range(300)]
    texts += ["a <|endoftext|> b", "", "  ", "It's a dog's 3D house", "<|startoftext|>"]
    assert all(counter._ids(text) == tokenizer(text, verbose=False).input_ids[1:-1] for text in texts)


def test_the_length_is_that_of_the_encoder_without_begin_and_end(embedded, model_folder):
    assert embedded[0].length == 38
    assert read_tokens(model_folder()).length == 12


def test_the_two_files_of_clip_give_the_same_tokens(model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    expected = read_tokens(folder)
    model = json.loads((folder / "tokenizer/tokenizer.json").read_text())["model"]
    (folder / "tokenizer/tokenizer.json").unlink()
    (folder / "tokenizer/vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "tokenizer/merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    counter = read_tokens(folder)
    for text in ("a red cube, front view", "A BLUE!! cube", ""):
        assert counter._ids(text) == expected._ids(text)


def test_punctuation_without_a_token_does_not_count(model_folder):
    counter = read_tokens(model_folder())
    assert counter.count('a (red) "cube"!') == counter.count("a red cube") == 3


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": {}}', '{"model": {"vocab": {"a": "b"}, "merges": []}}'])
def test_a_damaged_tokenizer_is_an_error_of_the_model(model_folder, tmp_path, content):
    shutil.copytree(model_folder(), tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "m/tokenizer/tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"^prior\.model: .*tokenizer"):
        read_tokens(tmp_path / "m")


@pytest.mark.parametrize("length", [2, 0, -5, "14", "x", [1], 13.5, float("nan")])
def test_a_tokenizer_that_reads_no_prompt_is_an_error_of_the_model(model_folder, tmp_path, length):
    shutil.copytree(model_folder(), tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    path = tmp_path / "m/tokenizer/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": length}))
    with pytest.raises(
        InputError, match=r"^prior\.model: .*tokenizer cannot be loaded \(.+\); replace it with an intact"
    ):
        read_tokens(tmp_path / "m")


@pytest.mark.parametrize("length", [10**30, 99, None])
def test_the_encoder_limits_a_tokenizer_that_reads_more(model_folder, tmp_path, length):
    shutil.copytree(model_folder(), tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    path = tmp_path / "m/tokenizer/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": length}))
    assert read_tokens(tmp_path / "m").length == 12


@pytest.mark.parametrize("token", [["a"], 7, {"content": "<|startoftext|>"}, {"__type": "AddedToken", "content": None}])
def test_a_special_token_that_transformers_cannot_read_is_refused(model_folder, tmp_path, token):
    shutil.copytree(model_folder(), tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    path = tmp_path / "m/tokenizer/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": token}))
    with pytest.raises(
        InputError, match=r"^prior\.model: .*tokenizer cannot be loaded \(.+\); replace it with an intact"
    ):
        read_tokens(tmp_path / "m")


def test_a_token_beyond_the_rows_of_the_text_encoder_is_refused(model_folder, tmp_path):
    shutil.copytree(model_folder(), tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    path = tmp_path / "m/tokenizer/tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["cube</w>"] = 5000
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"a tokenizer of 5001 tokens for a text encoder of \d+: its vocabulary"):
        read_tokens(tmp_path / "m")


@pytest.mark.parametrize(("vocabulary", "rows"), [({"<|startoftext|>": 0, "<|endoftext|>": 1}, 100), (None, 5)])
def test_a_vocabulary_that_does_not_fit_the_text_encoder_is_refused(model_folder, tmp_path, vocabulary, rows):
    shutil.copytree(model_folder(), tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    if vocabulary is not None:
        content = {"model": {"vocab": vocabulary, "merges": []}}
        (tmp_path / "m/tokenizer/tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "m/text_encoder/config.json").write_text(json.dumps({"vocab_size": rows}))
    with pytest.raises(InputError, match=rf"a tokenizer of \d+ tokens for a text encoder of {rows}: its vocabulary"):
        read_tokens(tmp_path / "m")
