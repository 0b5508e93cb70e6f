import json
import shutil

import pytest
import torch
import torch.nn.functional as F

from nfsd3d.errors import InputError
from nfsd3d.prior.files.download import fetch
from nfsd3d.prior.files.folder import ModelFiles
from nfsd3d.prior.files.locate import locate
from nfsd3d.prior.load_prior import load_prior
from nfsd3d.prior.sampling import ddim_sample

LATENT, VAE_FACTOR, TOKENS = 8, 4, 14


def embeddings(context):
    return context.tensors["embeddings"]


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["tiny", "kl"])
def loaded(request, model_folder, device):
    folder = model_folder(request.param)
    return load_prior(folder, device), folder


@pytest.fixture
def copied(model_folder, tmp_path):
    """A copy of a model that the test may change."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder(), folder)
    return folder


def test_shapes_come_from_the_model(loaded):
    prior, _ = loaded
    assert prior.image_size == LATENT * VAE_FACTOR
    assert prior.latent_shape == (4, LATENT, LATENT)
    assert prior.schedule.training_steps == 1000


def test_schedule_is_the_models(loaded):
    from diffusers import DDIMScheduler

    prior, folder = loaded
    expected = DDIMScheduler.from_pretrained(folder, subfolder="scheduler").alphas_cumprod
    assert torch.equal(prior.schedule.alphas_cumprod.cpu(), expected.double())


def test_half_precision_files_become_the_precision_asked_for(model_folder):
    for dtype in (torch.float32, torch.bfloat16):
        prior = load_prior(model_folder("kl"), dtype=dtype)
        context = prior.embed(["a red cube"])
        z = prior.encode(random(1, 3, 32, 32))
        eps = prior.predict_eps(z, torch.tensor([500]), context)
        assert {network.dtype for network in (*prior.networks, *prior._text_encoders.networks())} == {dtype}
        assert z.dtype == eps.dtype == prior.decode(z).dtype == torch.float32


def test_encode_is_the_scaled_posterior_mean_and_decode_goes_back(loaded):
    from diffusers import AutoencoderKL, AutoencoderTiny

    prior, folder = loaded
    image = random(2, 3, 32, 32)
    if json.loads((folder / "vae/config.json").read_text())["_class_name"] == "AutoencoderTiny":
        vae = AutoencoderTiny.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
        latent = vae.encode(image * 2 - 1).latents
        expected = (latent - 0.25) * 0.7
    else:
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
        latent = vae.encode(image * 2 - 1).latent_dist.mean
        expected = latent * 0.18215
    z = prior.encode(image.to(prior.device))
    torch.testing.assert_close(z.cpu(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(prior.encode(image.to(prior.device)), z)
    decoded = (vae.decode(latent).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(prior.decode(z).cpu(), decoded, rtol=1e-3, atol=1e-4)


def test_encode_is_differentiable(loaded):
    prior, _ = loaded
    image = random(1, 3, 32, 32).to(prior.device).requires_grad_()
    weights = torch.randn(1, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(1)).to(prior.device)
    (grad,) = torch.autograd.grad((prior.encode(image) * weights).sum(), image)
    direction = grad / grad.norm()
    step = 2e-2
    with torch.no_grad():
        ahead, behind = ((prior.encode(image + sign * step * direction) * weights).sum() for sign in (1, -1))
    assert ((ahead - behind) / (2 * step)).item() == pytest.approx(grad.norm().item(), rel=0.02)


def test_renders_are_resized_bilinearly(loaded):
    prior, _ = loaded
    small, large = random(1, 3, 16, 16).to(prior.device), random(1, 3, 128, 128).to(prior.device)
    up = F.interpolate(small, (32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(prior.encode(small), prior.encode(up))
    down = F.interpolate(large, (32, 32), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(prior.encode(large), prior.encode(down))


def test_decode_gives_images(loaded):
    prior, _ = loaded
    image = prior.decode(prior.encode(random(2, 3, 32, 32).to(prior.device)))
    assert image.shape == (2, 3, 32, 32)
    assert image.min() >= 0 and image.max() <= 1
    assert not image.requires_grad


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_predictions_are_noise_whatever_the_model_predicts(model_folder, prediction_type, device):
    from diffusers import UNet2DConditionModel

    folder = model_folder("tiny", prediction_type)
    prior = load_prior(folder, device)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
    z_t, t = torch.randn(3, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 400, 990])
    context = prior.embed(["a red cube", "", "a blue cube"])
    with torch.no_grad():
        output = unet(z_t, t, embeddings(context).cpu()).sample
    alpha_bar = prior.schedule.alphas_cumprod.cpu()[t][:, None, None, None]
    alpha, sigma = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
    expected = {
        "epsilon": output,
        "v_prediction": sigma * z_t + alpha * output,
        "sample": (z_t - alpha * output) / sigma,
    }[prediction_type]
    eps = prior.predict_eps(z_t.to(device), t.to(device), context)
    torch.testing.assert_close(eps.cpu(), expected, rtol=1e-4, atol=1e-4)
    assert not eps.requires_grad


def test_predictions_can_enter_autograd(loaded):
    prior, _ = loaded
    z = torch.randn(1, 4, LATENT, LATENT, device=prior.device, requires_grad=True)
    eps = prior.predict_eps(z, torch.tensor([100], device=prior.device), prior.embed([""]))
    (z * eps).sum().backward()
    assert torch.equal(z.grad, eps)


def test_nothing_of_the_model_is_trained(loaded):
    prior, _ = loaded
    networks = (*prior.networks, *prior._text_encoders.networks())
    assert not any(parameter.requires_grad for network in networks for parameter in network.parameters())
    assert not any(module.training for network in networks for module in network.modules())


def test_loading_prints_nothing(model_folder, capfd, caplog):
    load_prior(model_folder("tiny"))
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_embeddings_are_the_text_encoders(loaded):
    from transformers import CLIPTextModel

    prior, folder = loaded
    context = prior.embed(["a red cube, front view", ""])
    context = embeddings(context)
    assert context.shape == (2, TOKENS, 16)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    ids = prior._text_encoders._tokenizer(
        ["a red cube, front view", ""], padding="max_length", return_tensors="pt"
    ).input_ids
    assert ids.shape == (2, TOKENS) and ids[1].tolist() == [0, *[1] * (TOKENS - 1)]
    with torch.no_grad():
        expected = encoder(ids).last_hidden_state
    torch.testing.assert_close(context.cpu(), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(context[0], context[1])


def test_a_prompt_longer_than_the_encoder_is_refused(loaded):
    prior, _ = loaded
    assert embeddings(prior.embed([" ".join(["red"] * 12)])).shape[1] == TOKENS
    with pytest.raises(InputError, match=r"13 tokens long and the prior reads 12: shorten"):
        prior.embed([" ".join(["red"] * 13)])


def test_punctuation_without_a_token_counts_as_space(loaded):
    prior, _ = loaded
    plain, marked, commas = embeddings(prior.embed(["a red cube", 'a (red) "cube"!', "a red, cube"]))
    assert torch.equal(marked, plain)
    assert not torch.allclose(commas, plain)


def test_the_text_encoder_can_be_freed(loaded):
    prior, _ = loaded
    context = prior.embed(["a red cube"])
    prior.free_text_encoder()
    z_t = torch.zeros(1, *prior.latent_shape, device=prior.device)
    assert prior.predict_eps(z_t, torch.tensor([1]), context).isfinite().all()
    with pytest.raises(RuntimeError, match="freed"):
        prior.embed(["a blue cube"])


def test_samples_repeat_with_the_seed(loaded):
    prior, _ = loaded
    cond, uncond = prior.embed(["a red cube", "a blue cube"]), prior.embed([""])

    def sample(seed):
        rng = torch.Generator().manual_seed(seed)
        return ddim_sample(prior, cond, uncond, guidance_scale=3.0, steps=4, rng=rng)

    first = sample(0)
    assert first.shape == (2, 4, LATENT, LATENT) and first.isfinite().all()
    assert torch.equal(first, sample(0)) and not torch.allclose(first, sample(1))


def test_fp16_variant_files_are_found(model_folder, copied):
    for path in list(copied.glob("*/*.safetensors")):
        path.rename(path.with_suffix(".fp16.safetensors"))
    prior = load_prior(copied)
    expected = load_prior(model_folder())
    image = random(1, 3, 32, 32)
    assert torch.equal(prior.encode(image), expected.encode(image))
    assert torch.equal(embeddings(prior.embed(["a red cube"])), embeddings(expected.embed(["a red cube"])))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_corrupt_files_are_an_error_that_names_the_part(copied, part):
    for path in (copied / part).iterdir():
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match=f"{part}.* cannot be loaded"):
        load_prior(copied)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_missing_weights_are_not_replaced_by_random_ones(copied, part):
    from safetensors.torch import load_file, save_file

    (path,) = (copied / part).glob("*.safetensors")
    tensors = load_file(path)
    removed = sorted(tensors)[0]
    del tensors[removed]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=part):
        load_prior(copied)


def test_an_unknown_prediction_type_is_refused(copied):
    path = copied / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "flow"}))
    with pytest.raises(InputError, match="'flow' is not one of epsilon, v_prediction, sample"):
        load_prior(copied)


def test_an_autoencoder_of_other_latents_is_refused(copied):
    from diffusers import AutoencoderTiny

    blocks = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    counts = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    AutoencoderTiny(**blocks, **counts, latent_channels=3).save_pretrained(copied / "vae")
    with pytest.raises(InputError, match="takes 4 channels and the autoencoder has 3"):
        load_prior(copied)


def test_a_text_encoder_of_another_width_is_refused(copied):
    from transformers import CLIPTextConfig, CLIPTextModel

    path = copied / "text_encoder"
    config = CLIPTextConfig.from_pretrained(path, hidden_size=32)
    shutil.rmtree(path)
    CLIPTextModel(config).save_pretrained(path)
    with pytest.raises(InputError, match="attends to width 16 and the text encoder has 32"):
        load_prior(copied)


def test_the_files_of_stable_diffusion_1_load_as_the_same_model(model_folder, copied):
    """Its text encoder has a prefix and an index buffer, its tokenizer the two files of CLIP, its sampler is PNDM."""
    from safetensors.torch import load_file, save_file

    path = copied / "text_encoder/model.safetensors"
    tensors = {f"text_model.{name}": tensor for name, tensor in load_file(path).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(TOKENS)[None]
    save_file(tensors, path, metadata={"format": "pt"})
    model = json.loads((copied / "tokenizer/tokenizer.json").read_text())["model"]
    (copied / "tokenizer/tokenizer.json").unlink()
    (copied / "tokenizer/vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) for pair in model["merges"]]
    (copied / "tokenizer/merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    scheduler = json.loads((copied / "scheduler/scheduler_config.json").read_text())
    scheduler = {key: value for key, value in scheduler.items() if key.startswith("beta")}
    scheduler |= {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1}
    (copied / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    prior, expected = load_prior(copied), load_prior(model_folder())
    prompts = ["a red cube, front view", "", "A BLUE cube"]
    assert torch.equal(embeddings(prior.embed(prompts)), embeddings(expected.embed(prompts)))
    assert torch.equal(prior.schedule.alphas_cumprod, expected.schedule.alphas_cumprod)


def test_a_tokenizer_that_lost_its_vocabulary_is_refused(copied):
    from transformers import CLIPTokenizer

    shutil.rmtree(copied / "tokenizer")
    CLIPTokenizer().save_pretrained(copied / "tokenizer")
    with pytest.raises(InputError, match="vocabulary was not read"):
        load_prior(copied)


def test_a_single_file_loads_as_the_model_it_was_made_of(model_folder, single_file, tmp_path, device):
    from safetensors.torch import load_file, save_file

    folder = model_folder("kl")
    layout = tmp_path / "layout"
    shutil.copytree(folder, layout, ignore=shutil.ignore_patterns("*.safetensors"))
    files = fetch(locate("shapes", str(single_file), layout=str(layout)))
    prior, expected = load_prior(files, device), load_prior(folder, device)
    image = torch.rand(2, 3, 32, 32).to(device)
    z, context = expected.encode(image), expected.embed(["a red cube", ""])
    t = torch.tensor([10, 900])
    assert torch.equal(prior.encode(image), z) and torch.equal(
        embeddings(prior.embed(["a red cube", ""])), embeddings(context)
    )
    assert torch.equal(prior.predict_eps(z, t, context), expected.predict_eps(z, t, context))
    assert torch.equal(prior.decode(z), expected.decode(z))

    tensors = load_file(single_file)
    first = next(name for name in tensors if name.endswith("attn2.to_v.weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, tmp_path / "less.safetensors")
    with pytest.raises(InputError, match=r"prior\.model: .*less\.safetensors"):
        load_prior(ModelFiles(layout, tmp_path / "less.safetensors"), device)


@pytest.mark.parametrize("single", [False, True])
def test_another_autoencoder_takes_the_place_of_the_models_own(model_folder, single_file, single):
    folder, tiny = model_folder("kl"), model_folder("tiny")
    prior = load_prior(ModelFiles(folder, single_file if single else None, tiny / "vae"))
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(prior.encode(image), load_prior(tiny).encode(image))
    assert prior.latent_shape == load_prior(folder).latent_shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 3}, "channels 3 instead of 4"),
        ({"scaling_factor": 0.13025}, r"scaling_factor 0\.13025 instead of 0\.18215"),
        ({"blocks": 2}, "pixels per latent and axis 2 instead of 4"),
    ],
)
def test_another_autoencoder_with_other_latents_is_refused(model_folder, tmp_path, changes, message):
    from diffusers import AutoencoderKL

    changes = {"latent_channels": 4, "scaling_factor": 0.18215, "blocks": 3, **changes}
    blocks = changes.pop("blocks")
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * blocks, "up_block_types": ("UpDecoderBlock2D",) * blocks}
    AutoencoderKL(block_out_channels=(8,) * blocks, norm_num_groups=4, **kinds, **changes).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"prior\.vae: .*{message}"):
        load_prior(ModelFiles(model_folder("kl"), None, tmp_path))


def test_errors_of_another_autoencoder_name_its_setting(model_folder, tmp_path):
    shutil.copytree(model_folder("tiny") / "vae", tmp_path / "vae")
    (path,) = (tmp_path / "vae").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match=r"prior\.vae: .* cannot be loaded"):
        load_prior(ModelFiles(model_folder("kl"), None, tmp_path / "vae"))
