"""The training of the embedded prior, in miniature: every stage, resumed, exported and loaded."""

import json
import shutil
from dataclasses import replace

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from nfsd3d.prior.load_prior import load_prior
from nfsd3d.prior.schedule import NoiseSchedule
from nfsd3d.prior.vocabulary import check_prompt
from nfsd3d.shapes.training import autoencoder, denoiser, objectives, pipeline
from nfsd3d.shapes.training.common import Clock, TeacherSettings, one_cycle
from nfsd3d.shapes.training.dataset import load_dataset
from nfsd3d.shapes.world.degrade import NEGATIVE_WORDS
from nfsd3d.shapes.world.grammar import held_out

TINY = TeacherSettings(
    size=32,
    images=256,
    vae_width=8,
    vae_minutes=0.05,
    unet_channels=(16, 16, 32),
    unet_layers=1,
    text_width=32,
    text_layers=1,
    unet_batch=8,
    unet_minutes=0.05,
    checkpoint_minutes=0.01,
    sample_minutes=10.0,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    model = pipeline.train(folder, TINY, torch.device("cpu"))
    return folder, model


def test_training_exports_a_model_that_the_prior_loads(trained):
    folder, model = trained
    prior = load_prior(str(model), device=torch.device("cpu"), dtype=torch.float32)
    assert prior.image_size == 32
    assert prior.latent_shape == (4, 8, 8)
    assert isinstance(prior.schedule, NoiseSchedule)
    context = prior.embed(["a red and white dotted mushroom", ", ".join(NEGATIVE_WORDS)])
    embedded = context.tensors["embeddings"]
    assert not embedded[0].allclose(embedded[1])
    sheet = iio.imread(next(folder.glob("samples-*.png")))
    assert sheet.shape == (len(held_out()) // 8 * 64, 8 * 64, 3)
    latents = prior.encode(torch.rand(8, 3, 32, 32))
    assert latents.isfinite().all()


def test_vocabulary_covers_the_world_and_refuses_other_words(trained):
    _, model = trained
    words = json.loads((model / "vocabulary.json").read_text())
    assert "mushroom" in words["groups"]["objects"]
    for composition in held_out():
        check_prompt(model, composition.prompt)
    check_prompt(model, ", ".join(NEGATIVE_WORDS))
    with pytest.raises(ValueError, match="dragon"):
        check_prompt(model, "a red dragon")


def test_training_resumes_where_it_was(trained):
    folder, _ = trained
    before = torch.load(folder / "denoiser.pt", weights_only=True)
    pipeline.train(folder, replace(TINY, unet_minutes=0.1), torch.device("cpu"))
    after = torch.load(folder / "denoiser.pt", weights_only=True)
    assert after["step"] > before["step"] > 0
    assert after["seconds"] >= 6 > before["seconds"]
    assert objectives.build_scheduler().config.prediction_type == "epsilon"


def test_training_starts_from_a_model_with_another_vocabulary(trained, tmp_path):
    from transformers import CLIPTokenizer

    folder, model = trained
    captions = [["a red dragon, front view", "a sphere"]] * 256
    denoiser.fit_tokenizer(captions, tmp_path / "tokenizer")
    settings = replace(TINY, vae_minutes=0.0)
    pipeline.begin_from(model, tmp_path, settings)
    state = torch.load(tmp_path / "denoiser.pt", weights_only=True)
    name = next(name for name in state["model"] if name.endswith("token_embedding.weight"))
    before = torch.load(folder / "denoiser.pt", weights_only=True)["average"]
    old = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True).get_vocab()
    new = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True).get_vocab()
    close = dict(rtol=0, atol=2e-3)  # the model's file is in half precision
    for word in ("red</w>", "sphere</w>", "<|endoftext|>"):
        assert old[word] != new[word] or word.startswith("<")
        torch.testing.assert_close(state["model"][name][new[word]], before[name][old[word]], **close)
    torch.testing.assert_close(state["model"][name][new["dragon</w>"]], before[name].mean(0), **close)
    torch.testing.assert_close(state["model"]["unet.conv_in.weight"], before["unet.conv_in.weight"], **close)

    dataset = load_dataset(folder / "pictures", TINY)
    autoencoder.train_autoencoder(dataset, tmp_path, settings, torch.device("cpu"))  # no budget: nothing moves
    latents = torch.randn(256, 4, 8, 8)
    denoiser.train_denoiser(dataset, latents, tmp_path, settings, torch.device("cpu"), lambda model, step: None)
    pipeline.begin_from(model, tmp_path, settings)
    assert torch.load(tmp_path / "denoiser.pt", weights_only=True)["step"] > 0


def test_a_tokenizer_makes_one_token_of_each_word(trained):
    from transformers import CLIPTokenizer

    folder, _ = trained
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    words = ["a", "red", "snowman", ",", "front", "view"]
    assert tokenizer.tokenize("a Red snowman, front view") == [f"{word}</w>" for word in words]
    assert len(tokenizer(", ".join(NEGATIVE_WORDS)).input_ids) <= denoiser.MAX_TOKENS


def test_autoencoder_learns_its_images(trained):
    folder, _ = trained
    dataset = load_dataset(folder / "pictures", TINY)
    assert len(dataset.images) == len(dataset.captions) == len(dataset.degraded) == 256
    assert 0.05 < dataset.degraded.mean() < 0.3
    image = autoencoder.to_images(dataset.images[:8], torch.device("cpu"))
    flat = image.mean((2, 3), keepdim=True).expand_as(image)
    assert autoencoder.psnr(image, image + 0.02) > 35 > autoencoder.psnr(image, flat)
    assert np.isfinite(autoencoder.psnr(image, flat))


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 1.0, 2.0])
def test_learning_rate_rises_then_falls(fraction):
    value = one_cycle(fraction)
    assert 0 < value <= 1
    assert one_cycle(0.05) == pytest.approx(1.0)
    assert one_cycle(1.0) < 0.05


def test_a_clock_resumes_its_cycle_and_starts_another_when_the_budget_is_raised():
    clock = Clock(minutes=1.0)
    clock.done = 30.0
    half = clock.state()
    clock.done = 61.0
    finished = clock.state()
    resumed, longer = Clock(minutes=1.0), Clock(minutes=2.0)
    resumed.resume(half)
    longer.resume(finished)
    assert resumed.cycle() == pytest.approx(0.5)
    assert longer.cycle() == 0 and longer.tick() > 0.5
    longer.done = 90.5
    assert longer.cycle() == pytest.approx(0.5)


def test_the_encoder_rests_at_the_end_while_the_decoder_learns(trained, tmp_path):
    folder, _ = trained
    shutil.copy(folder / "autoencoder.pt", tmp_path)
    before = torch.load(tmp_path / "autoencoder.pt", weights_only=True)["model"]
    settings = replace(TINY, vae_minutes=0.1, vae_decoder_share=0.5)
    autoencoder.train_autoencoder(load_dataset(folder / "pictures", TINY), tmp_path, settings, torch.device("cpu"))
    after = torch.load(tmp_path / "autoencoder.pt", weights_only=True)["model"]
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}


def test_loss_weight_is_min_snr_with_a_floor_and_a_cap():
    alpha_bar = torch.tensor([0.999, 0.5, 0.05, 0.0005])
    snr = alpha_bar / (1 - alpha_bar)
    plain = objectives.loss_weight(alpha_bar, gamma=5.0, floor=0.0)
    torch.testing.assert_close(plain[:3], snr[:3].clamp(max=5) / snr[:3])
    raised = objectives.loss_weight(alpha_bar, gamma=5.0, floor=0.5)
    torch.testing.assert_close(raised[1:3], (snr[1:3] + 0.5) / snr[1:3])
    assert raised[3] == objectives.LARGEST_WEIGHT


def test_harder_images_are_drawn_more_often():
    captions = [
        ["a blue sphere"],
        ["a blue and red dotted sphere"],
        ["a white car"],
        ["a car with white and red checks"],
    ]
    share = denoiser.caption_difficulty(captions)
    assert share.sum() == pytest.approx(1)
    assert share[0] < share[1] < share[3] and share[0] < share[2] < share[3]
    assert share[3] / share[0] == pytest.approx(share[1] / share[0] * share[2] / share[0])


def test_captions_mostly_say_the_view_and_are_sometimes_dropped():
    options = ["a red house, front view", "a red house", "a house, front view, sharp", "a house"]
    random = np.random.default_rng(0)
    drawn = [denoiser.draw_caption(options, random) for _ in range(4000)]
    assert drawn.count("") / 4000 == pytest.approx(denoiser.CAPTION_DROPOUT, abs=0.02)
    said = [caption for caption in drawn if caption]
    with_view = sum("view" in caption for caption in said) / len(said)
    assert with_view == pytest.approx(denoiser.VIEW_SHARE + (1 - denoiser.VIEW_SHARE) / 2, abs=0.02)
    assert set(said) == set(options)
    assert set(denoiser.draw_caption(["blurry, dark"], random) for _ in range(50)) == {"", "blurry, dark"}
