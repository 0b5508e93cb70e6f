"""Tests that need a CUDA device: real memory use, real out-of-memory errors, synchronisation, CUDA graphs, the demo."""

import gc
import io
import shutil
from dataclasses import replace
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import nfsd3d
from nfsd3d.config.compose import compose
from nfsd3d.context import Context
from nfsd3d.distill.methods import METHODS
from nfsd3d.evaluate.classifier.alignment import align
from nfsd3d.evaluate.classifier.model import Classifier
from nfsd3d.evaluate.ground_truth import composition_of
from nfsd3d.evaluate.score_scene import views_of
from nfsd3d.generators.images import ImageBatch
from nfsd3d.prior.architectures import random_prior
from nfsd3d.prior.compiled.cuda_graphs import peak_bytes
from nfsd3d.prior.files.locate import EMBEDDED
from nfsd3d.prior.load_prior import load_prior
from nfsd3d.runs import checkpoints
from nfsd3d.train.build import PRECISIONS, build_generator, build_parts
from nfsd3d.train.compilation import compile_prior
from nfsd3d.train.memory.budget import GIB, Estimator, fit_into_memory
from nfsd3d.train.memory.chunking import configured_chunks
from nfsd3d.train.memory.retry import differentiate
from nfsd3d.train.plan import plan_at
from nfsd3d.train.run import train_and_export
from nfsd3d.train.step import step_loss
from nfsd3d.train.task import ScoreDistillation
from nfsd3d.views.cameras import orbit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("default"),  # the compilers' own
]

CHOICES = ["prompt=a red cube", "negative_prompt=dull", "machine=cuda", "prior=sd21"]


@pytest.fixture(autouse=True)
def _fresh_memory():
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.compiler.reset()
    gc.collect()  # a compiled prior is held by its own method
    torch.cuda.empty_cache()


def full_size(experiment: str, *overrides: str):
    """An experiment with Stable Diffusion 2.1's networks and random weights: its configuration, parts and chunks."""
    config = compose(experiment, [*CHOICES, *overrides])
    parts = build_parts(config, random_prior("sd21", "cuda", PRECISIONS[config.machine.precision]))
    return config, parts, fit_into_memory(config, parts, configured_chunks(config.machine), lambda text: None)


def steps_of(config, parts, chunks, count=2, progress=0.6):
    """Some steps of the training loop, from that fraction of training on; returns the chunk sizes that fitted."""
    task = ScoreDistillation.of(config, parts)
    for step in range(count):
        parts.generator.update(step, parts.rng)
        plan = replace(plan_at(config.train, progress), chunks=chunks)
        result, chunks = differentiate(task, plan)
        assert all(value.isfinite() for value in result.metrics.tensors().values())
        parts.optimizer.step()
    return chunks


@pytest.mark.parametrize(("experiment", "gigabytes"), [("nfsd", 12), ("lowmem", 8)])
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_a_step_at_512_pixels_stays_within_its_memory(experiment, gigabytes, compiled):
    config, parts, chunks = full_size(experiment, f"machine.compile={compiled}")
    compile_prior(config, parts, chunks, lambda text: None)
    torch.cuda.reset_peak_memory_stats()
    assert steps_of(config, parts, chunks) == chunks  # nothing had to be made smaller
    assert peak_bytes("cuda") <= gigabytes * GIB


@pytest.mark.parametrize(("experiment", "compiled"), [("nfsd", "false"), ("nfsd", "true"), ("lowmem", "false")])
def test_the_prediction_is_what_a_step_takes(experiment, compiled):
    config, parts, chunks = full_size(experiment, f"machine.compile={compiled}")
    predicted = Estimator(parts.prior, parts.generator, parts.distillation.method, config).budget(chunks).total
    compile_prior(config, parts, chunks, lambda text: None)
    torch.cuda.reset_peak_memory_stats()
    steps_of(config, parts, chunks)
    taken = peak_bytes("cuda")
    # An upper bound as far as the samples go: a scene seldom has as many as the cap allows.
    assert 0.4 * predicted < taken < 1.25 * predicted


def test_real_out_of_memory_leads_to_smaller_chunks():
    config, parts, _ = full_size("nfsd", "machine.compile=false", "machine.memory_gb=null")
    gc.collect()
    torch.cuda.empty_cache()  # the text encoder's place, which counts as free otherwise
    held = torch.cuda.memory_reserved()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (held + 2 * GIB) / total))
    try:
        chunks = steps_of(config, parts, configured_chunks(config.machine), count=1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert chunks != configured_chunks(config.machine) and chunks.checkpoint_encoder


def test_a_step_of_vsd_with_full_size_networks():
    """The LoRA network shares the prior's UNet, and is trained too."""
    config, parts, chunks = full_size("vsd", "machine.compile=true")
    compile_prior(config, parts, chunks, lambda text: None)
    before = [tensor.clone() for tensor in parts.distillation.lora.optimizer.param_groups[0]["params"]]
    torch.cuda.reset_peak_memory_stats()
    steps_of(config, parts, chunks)
    assert peak_bytes("cuda") <= 12 * GIB
    parts.distillation.lora.optimizer.step()
    after = parts.distillation.lora.optimizer.param_groups[0]["params"]
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def on_pixels(name: str, folder: Path, *overrides: str):
    """A method with the embedded prior and pixels as the generator: its configuration and its parts."""
    choices = ["prompt=a red cube", "machine=cuda", "prior=shapes", "generator=image", "train.batch_size=2",
               f"distill={name}", "prompts.view_dependent=true", *overrides]  # fmt: skip
    if METHODS[name].needs_source:
        imageio.imwrite(folder / "source.png", np.full((64, 64, 3), 100, np.uint8))
        choices += [f"source_image={folder / 'source.png'}", "source_prompt=a blue cube"]
    config = compose("nfsd", choices)
    parts = build_parts(config, load_prior(EMBEDDED, "cuda", torch.bfloat16))
    assert isinstance(parts.generator, ImageBatch)
    return config, parts


@pytest.mark.parametrize("perp_neg", ["false", "true"])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_priors_part_of_a_step_does_not_synchronise(name, perp_neg, tmp_path):
    """Everything but rendering, from the encoder to the gradient on the image."""
    config, parts = on_pixels(name, tmp_path, f"prompts.perp_neg={perp_neg}")

    def step() -> None:
        plan = plan_at(config.train, 0.7)
        arguments = parts.bank, parts.distillation, parts.ranges, plan, parts.rng, parts.source
        loss = step_loss(parts.generator, parts.prior, *arguments).loss
        parts.optimizer.zero_grad(set_to_none=True)
        loss.backward()

    step()  # libraries initialise themselves the first time
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    step()
    torch.cuda.set_sync_debug_mode("default")
    assert parts.generator.values.grad.isfinite().all()


def test_rendering_does_not_synchronise_with_queued_work():
    """The number of samples is known while the GPU is still busy with earlier work."""
    config = compose("nfsd", ["prompt=a red cube", "machine=cuda", "prior=shapes"])
    generator = build_generator(config)
    generator.update(0, torch.Generator())
    cameras = orbit(2, 64)
    with torch.no_grad():
        for _ in range(2):  # kernels are compiled, and memory is there
            expected = generator.render(cameras).image
        torch.cuda.synchronize()
        torch.cuda._sleep(2 * 10**9)  # a second or so
        image = generator.render(cameras).image
        assert not torch.cuda.current_stream().query()  # the GPU has not come to it yet
        assert (image - expected).abs().max() < 1e-5

        torch.cuda._sleep(2 * 10**9)
        generator.occupancy.occupied.zero_()  # which a view has to wait for
        assert generator.render(cameras).opacity.max() == 0


@pytest.mark.parametrize(
    ("name", "perp_neg"), [("nfsd", "false"), ("nfsd", "true"), ("dds", "false"), ("ism", "false"), ("sdi", "false")]
)
def test_compiled_steps_of_several_views_compile_nothing_more(name, perp_neg, tmp_path):
    config, parts = on_pixels(name, tmp_path, f"prompts.perp_neg={perp_neg}", "machine.compile=true")
    chunks = configured_chunks(config.machine)
    compile_prior(config, parts, chunks, lambda text: None)
    with torch.compiler.set_stance("fail_on_recompile"):
        for progress in (0.0, 0.3, 0.6, 0.9):
            assert steps_of(config, parts, chunks, 1, progress) == chunks


def test_the_compiled_networks_agree_with_the_eager_ones():
    prior = random_prior("sd21", "cuda", torch.bfloat16)
    rng = torch.Generator("cuda").manual_seed(0)
    z = torch.randn(3, *prior.latent_shape, device="cuda", generator=rng)
    t, shape = torch.tensor([30, 300, 900]), prior.blank_context(3).tensors["embeddings"].shape
    context = Context.of(torch.randn(shape, device="cuda", generator=rng))
    pixels = torch.rand(1, 3, 512, 512, device="cuda", generator=rng)

    def results():
        image = pixels.clone().requires_grad_()
        encoded = prior.encode(image)
        eps = [prior.predict_eps(z[:rows], t[:rows], context[:rows]) for rows in (3, 2, 3)]
        encoded.square().sum().backward()
        return [encoded.detach(), image.grad, *eps]

    expected = results()
    prior.compile(batch_unit=1)
    for _ in range(2):  # recorded, and started again
        found = results()
        assert torch.equal(found[2], found[4])  # an earlier result is not written over by a later run
        for result, value in zip(found, expected, strict=True):
            assert (result - value).norm() < 0.1 * value.norm()  # bfloat16, other orders of addition


def test_a_run_resumes_from_its_checkpoint(tmp_path):
    """Equal to an uninterrupted run, up to the GPU's order of additions."""
    kept = ["train.steps=6", "train.checkpoint_every=3", "train.keep_checkpoints=2"]
    bare = [f"export.{what}=false" for what in ("mesh", "turntable", "report")]
    choices = ["prompt=a red cube", "prior=shapes", "machine=cuda", *kept, *bare]
    console = Console(file=io.StringIO())
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    straight.mkdir()
    train_and_export(compose("nfsd", [*choices, f"run_dir={straight}"]), console=console)
    shutil.copytree(straight, stopped)
    for path in (stopped / "checkpoints").glob("step-000006.*"):
        path.unlink()
    begun = load_file(checkpoints.newest(stopped).path.with_suffix(".safetensors"))
    train_and_export(compose("nfsd", [*choices, f"run_dir={stopped}"]), resume=stopped, console=console)
    expected, found = (
        load_file(checkpoints.newest(run).path.with_suffix(".safetensors")) for run in (straight, stopped)
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        moved = (value.double() - begun[name].double()).norm()
        assert (found[name].double() - value.double()).norm() <= 0.02 * moved, name


def test_the_demo_gives_on_cuda_what_it_gives_on_the_cpu(tmp_path):
    prompt = "a red and white dotted mushroom"
    overrides = {"prior": "shapes", "machine": "cuda", "run_dir": str(tmp_path / "run"), "export.mesh": False,
                 "export.turntable": False, "export.report": False}  # fmt: skip
    run = nfsd3d.generate(prompt, config="nfsd", seed=0, **overrides)
    images, _ = views_of(run)
    prediction = align(Classifier.load().classify(images).pooled(), [composition_of(prompt)])
    assert bool(prediction.object) and bool(prediction.color)
