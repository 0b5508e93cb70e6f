"""Every family against the loop of its own diffusers pipeline, with small random models."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from tiny_families import PIPELINES, pipeline_of, prior_of

from nfsd3d.context import Context
from nfsd3d.guidance import guided
from nfsd3d.prior.families.table import FAMILIES
from nfsd3d.prior.schedule import RectifiedFlow
from nfsd3d.train.memory.budget import fit_into_memory
from nfsd3d.train.memory.chunking import ChunkSizes
from nfsd3d.train.memory.footprint import network_peak

# diffusers' own modules use what diffusers has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in version 1.0.0:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

SCALE = 3.5
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
PROMPTS, NEGATIVES = ["a red cube", "a blue cube, front view"], ["dull", "blue, dull"]


@pytest.fixture(scope="module", params=sorted(PIPELINES))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def pipeline(name):
    return pipeline_of(name)


@pytest.fixture(scope="module")
def prior(pipeline, name):
    return prior_of(pipeline, name)


def steps_of(pipeline, prior, name, prompts, negatives):
    """(latents, the scheduler's times, the guided output) of each step of the pipeline's own loop."""
    latents = torch.randn(len(prompts), *prior.latent_shape, generator=torch.Generator().manual_seed(1))
    if name != "prx":
        return looped(pipeline, prior, name, prompts, negatives, latents)
    # PRXPipeline of diffusers 0.42.1 raises for several prompts with guidance: one after the other.
    alone = [
        looped(pipeline, prior, name, [prompt], negatives and [negatives[i]], latents[i : i + 1])
        for i, prompt in enumerate(prompts)
    ]
    return [
        (torch.cat([z_t for z_t, _, _ in step]), step[0][1], torch.cat([output for *_, output in step]))
        for step in zip(*alone, strict=True)
    ]


def looped(pipeline, prior, name, prompts, negatives, latents):
    recorded = []
    step = type(pipeline.scheduler).step

    def recording(scheduler, output, t, sample, *arguments, **named):
        recorded.append((sample.clone(), float(t), output.clone()))
        return step(scheduler, output, t, sample, *arguments, **named)

    given = latents
    if name == "chroma":  # packed as its own prepare_latents packs
        given = pipeline._pack_latents(latents, *latents.shape)
    scale = SCALE - 1 if name == "zimage" else SCALE  # Z-Image's counts from the conditional prediction
    options = {"cfg_normalization": False} if "cfg_normalization" in _parameters(pipeline) else {}
    if name == "chroma":
        options |= embedded_with_masks(pipeline, prompts, negatives)
    else:
        options["prompt"] = list(prompts)
        if negatives is not None:
            options["negative_prompt"] = list(negatives)
    if "use_resolution_binning" in _parameters(pipeline):
        options["use_resolution_binning"] = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pipeline.scheduler), "step", recording)
        pipeline(
            height=prior.image_size,
            width=prior.image_size,
            num_inference_steps=3,
            guidance_scale=scale,
            latents=given,
            output_type="latent",
            **options,
        )
    if name == "chroma":
        side = prior.image_size
        recorded = [
            (pipeline._unpack_latents(sample, side, side, 8), t, pipeline._unpack_latents(output, side, side, 8))
            for sample, t, output in recorded
        ]
    return recorded


def embedded_with_masks(pipeline, prompts, negatives):
    """The prompts with masks of booleans: the numbers 0 and 1 that diffusers 0.42.1 makes of them hide nothing."""
    states, _, mask, *_ = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
    others, _, hidden, *_ = pipeline.encode_prompt(
        list(negatives or [""] * len(prompts)), do_classifier_free_guidance=False
    )
    return {
        "prompt_embeds": states,
        "prompt_attention_mask": mask.bool(),
        "negative_prompt_embeds": others,
        "negative_prompt_attention_mask": hidden.bool(),
    }


def _parameters(pipeline):
    return inspect.signature(type(pipeline).__call__).parameters


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("with_negative", [True, False])
def test_predictions_are_those_of_the_pipelines_own_loop(pipeline, prior, name, count, with_negative):
    prompts, negatives = PROMPTS[:count], NEGATIVES[:count] if with_negative else None
    recorded = steps_of(pipeline, prior, name, prompts, negatives)
    assert len(recorded) == 3
    cond = prior.embed(prompts, [False] * count)
    uncond = prior.embed(negatives or [""] * count, [True] * count)
    flow = isinstance(prior.schedule, RectifiedFlow)
    for z_t, t, output in recorded:
        times = torch.full((count,), t / 1000, dtype=torch.float64) if flow else torch.full((count,), int(t))
        predicted = guided(prior.predict_eps(z_t, times, uncond), prior.predict_eps(z_t, times, cond), SCALE)
        clean = guided(prior.predict_x0(z_t, times, uncond), prior.predict_x0(z_t, times, cond), SCALE)
        time = t / 1000
        expected = z_t + (1 - time) * output if flow else output
        assert (predicted - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
        expected = z_t - time * output if flow else prior.schedule.x0_from_eps(z_t, output, times)
        assert (clean - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
    noise, middle = torch.randn(count, *prior.latent_shape), prior.schedule.time(torch.tensor([600] * count))
    both = [prior.predict_eps(noise, middle, context) for context in (cond, uncond)]
    assert (both[0] - both[1]).abs().amax() > 1e-4  # the prompt matters


def test_decoding_is_that_of_the_pipeline(pipeline, prior, name):
    z = torch.randn(2, *prior.latent_shape, generator=torch.Generator().manual_seed(2))
    config = pipeline.vae.config
    if getattr(config, "latents_mean", None) is not None:
        mean, std = (torch.tensor(value)[:, None, None] for value in (config.latents_mean, config.latents_std))
        latent = z * std / config.scaling_factor + mean
    else:
        latent = z / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
    expected = pipeline.image_processor.postprocess(pipeline.vae.decode(latent).sample, output_type="pt")
    assert prior.decode(z).shape == (2, 3, prior.image_size, prior.image_size)
    torch.testing.assert_close(prior.decode(z), expected, **CLOSE)


def test_encoding_is_the_inverse_normalisation_of_decoding(pipeline, prior):
    image = torch.rand(2, 3, prior.image_size, prior.image_size, generator=torch.Generator().manual_seed(3))
    z = prior.encode(image.requires_grad_())
    assert z.shape == (2, *prior.latent_shape)
    encoded = pipeline.vae.encode(image.detach() * 2 - 1)
    latent = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latent
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        decode = pipeline.vae.decode
        patch.setattr(pipeline.vae, "decode", lambda latent: seen.append(latent) or decode(latent))
        prior.decode(z.detach())
    torch.testing.assert_close(seen[0], latent, **CLOSE)
    (gradient,) = torch.autograd.grad(z.square().sum(), image)
    assert gradient.abs().max() > 0


def test_a_prompt_alone_and_among_others_is_the_same(prior):
    together = prior.embed([*PROMPTS, ""], [False, False, True])
    for index, (prompt, negative) in enumerate([*((prompt, False) for prompt in PROMPTS), ("", True)]):
        alone = prior.embed([prompt], [negative])
        for key, value in alone.tensors.items():
            assert torch.equal(together[index : index + 1].tensors[key], value)


def test_predictions_do_not_depend_on_the_rest_of_the_batch(prior):
    context = prior.embed([*PROMPTS, ""], [False, False, True])
    z_t = torch.randn(3, *prior.latent_shape, generator=torch.Generator().manual_seed(4))
    t = prior.schedule.time(torch.tensor([100, 500, 900]))
    together = prior.predict_eps(z_t, t, context)
    alone = [prior.predict_eps(z_t[i : i + 1], t[i : i + 1], context[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_what_the_mask_hides_is_not_read(prior, name):
    context = prior.embed(PROMPTS[:1])
    if "mask" not in context.tensors:
        pytest.skip("reads all tokens")
    mask, states = context.tensors["mask"].bool(), context.tensors["embeddings"]
    if mask.all():
        pytest.skip("no token of this prompt is hidden")
    others = torch.where(mask[..., None], states, torch.randn(states.shape, generator=torch.Generator().manual_seed(6)))
    changed = Context({**context.tensors, "embeddings": others})
    z_t = torch.randn(1, *prior.latent_shape, generator=torch.Generator().manual_seed(5))
    t = prior.schedule.time(torch.tensor([500]))
    torch.testing.assert_close(prior.predict_eps(z_t, t, changed), prior.predict_eps(z_t, t, context), **CLOSE)
    seen = Context({**context.tensors, "embeddings": states + mask[..., None]})
    assert (prior.predict_eps(z_t, t, seen) - prior.predict_eps(z_t, t, context)).abs().max() > 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_hidden_tokens_are_finite_on_a_gpu(dtype):
    """Chroma's hidden tokens attend to nothing, for which kernels of attention have their own answers."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pipeline = pipeline_of("chroma")
    context = prior_of(pipeline, "chroma").embed(PROMPTS[:1])
    denoiser = pipeline.transformer.to("cuda", dtype)
    tensors = {name: value.to("cuda", dtype) for name, value in context.tensors.items()}
    latents = torch.randn(1, 16, 16, 16, device="cuda", dtype=dtype)
    predicted = FAMILIES["chroma"].predict(
        denoiser, latents, torch.full((1,), 0.5, device="cuda", dtype=dtype), tensors
    )
    assert predicted.isfinite().all()


def test_memory_is_predicted_where_the_denoiser_reads_no_values(prior, name):
    prior.embed(PROMPTS[:1])
    if FAMILIES[name].traceable:
        whole = network_peak(prior.without_weights(), ChunkSizes(), 2, 4)
        assert whole > network_peak(
            prior.without_weights(), ChunkSizes(unet_batch_size=1, checkpoint_encoder=True), 2, 4
        )
    else:
        said = []
        parts = SimpleNamespace(prior=prior)
        assert fit_into_memory(None, parts, ChunkSizes(rays_per_chunk=7), said.append) == ChunkSizes(rays_per_chunk=7)
        assert said[0].startswith(f"memory: not predicted for a {FAMILIES[name].title} model; ")


def test_prompts_of_several_lengths_are_read_each_as_a_whole():
    """CogView4 has no mask that works: a long and a short prompt in one batch are as each alone."""
    pipeline = pipeline_of("cogview4")
    prior = prior_of(pipeline, "cogview4")
    context = prior.embed(["a red cube", "a blue cube, " * 8, "dull"])
    assert context.tensors["mask"].sum(1).tolist() == [16, 48, 16]
    z_t, t = torch.randn(3, *prior.latent_shape), torch.full((3,), 0.5, dtype=torch.float64)
    together = prior.predict_eps(z_t, t, context)
    for i in range(3):
        alone = prior.predict_eps(z_t[i : i + 1], t[i : i + 1], context[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, **CLOSE)


def test_the_empty_prompt_of_stable_diffusion_xl_is_zeros_unless_its_index_says_otherwise():
    pipeline = pipeline_of("sdxl")
    prior = prior_of(pipeline, "sdxl")
    assert not any(value.any() for value in prior.embed(["", "a red cube"])[:1].tensors.values())
    assert all(value.any() for value in prior.embed(["", "a red cube"])[1:].tensors.values())
    pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    assert all(value.any() for value in prior.embed([""]).tensors.values())


def test_stable_diffusion_3_works_without_t5():
    from tiny_families import sd3

    torch.manual_seed(0)
    pipeline = sd3(with_t5=False)
    prior = prior_of(pipeline, "sd3")
    cond = prior.embed(["a red cube"])
    assert cond.tensors["embeddings"].shape[1] == 14 + 256 and not cond.tensors["embeddings"][:, 14:].any()
    z_t = torch.randn(1, *prior.latent_shape)
    assert prior.predict_eps(z_t, torch.tensor([0.5], dtype=torch.float64), cond).isfinite().all()
