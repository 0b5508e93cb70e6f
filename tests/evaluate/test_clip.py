"""CLIP scores with a small random model in the layout of transformers."""

import json

import pytest
import torch

from nfsd3d.errors import InputError
from nfsd3d.evaluate.clip import ClipRow, ClipScore, ClipScorer, summarize_clip


@pytest.fixture(scope="module")
def scorer(clip_folder):
    return ClipScorer.load(str(clip_folder))


def test_embeddings_are_those_of_the_model(clip_folder, scorer):
    from transformers import CLIPModel

    torch.manual_seed(1)
    images = torch.rand(2, 3, 32, 32)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = (images - mean[:, None, None]) / std[:, None, None]
    tokens = torch.tensor([[0, 2, 3, 1], [0, 4, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.no_grad():
        output = model(input_ids=tokens, attention_mask=mask, pixel_values=pixels)
    torch.testing.assert_close(scorer.embed_images(images), output.image_embeds, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scorer.embed_texts(["a b", "c"]), output.text_embeds, rtol=1e-4, atol=1e-4)


def test_scores_are_cosines_and_retrieval_is_among_the_prompts(scorer):
    torch.manual_seed(2)
    views = [torch.rand(3, 3, 48, 48) for _ in range(2)]
    scores = scorer.score(views, ["a b", "c d"])
    texts = scorer.embed_texts(["a b", "c d"])
    for own, (images, score) in enumerate(zip(views, scores, strict=True)):
        cosines = (scorer.embed_images(images) @ texts.T).mean(0)
        assert score.score == pytest.approx(100 * cosines[own].item(), abs=1e-3)
        assert score.retrieved is bool(cosines.argmax() == own)
    assert scorer.score(views, ["a", "a"])[0].retrieved is None


def test_models_that_are_not_there_are_refused_at_once(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"--clip .*no config\.json"):
        ClipScorer.load(str(tmp_path))
    with pytest.raises(InputError, match="no such folder, and not a hub id"):
        ClipScorer.load("missing")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unknown"}))
    with pytest.raises(InputError, match="cannot be loaded as a CLIP model"):
        ClipScorer.load(str(tmp_path))


def test_a_row_counts_diverged_runs_and_those_without_a_view():
    done = {"status": "done", "seconds": 120.0, "peak_memory_mb": {"host": 512.0, "cuda": 2048.0}}
    diverged = {"status": "diverged", "seconds": 60.0, "peak_memory_mb": {"host": 1024.0}}
    scores = [ClipScore("a", 30.0, True), ClipScore("b", 20.0, False)]
    row = summarize_clip(scores, [done, done, diverged, {}])
    assert row == ClipRow(4, 25.0, pytest.approx(50**0.5), 0.5, 0.25, pytest.approx(5 / 3), pytest.approx(5 / 3))
    assert summarize_clip([], [{}]) == ClipRow(1, None, None, None, 0.0, None, None)
