"""Compilation of the networks: conditions, shapes, and failures."""

import gc
import os
import subprocess
import sys
import warnings
import weakref
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from small_settings import CAMERAS, DISTILL, PROMPTS

from nfsd3d.config.compose import compose
from nfsd3d.distill.methods import METHODS
from nfsd3d.errors import InputError
from nfsd3d.generators.images import ImageBatch
from nfsd3d.prior.compiled import denoiser
from nfsd3d.prior.diffusers_prior import DiffusersPrior
from nfsd3d.prior.files.locate import EMBEDDED
from nfsd3d.prior.load_prior import load_prior
from nfsd3d.train.build import build_parts, build_prior
from nfsd3d.train.compilation import (
    CACHE_VARIABLE,
    TRACED_AFTER,
    cache_folder,
    compile_prior,
    compiled_batch_sizes,
    release_compiled,
    wants_compilation,
    warm_up_encoder,
)
from nfsd3d.train.memory.chunking import ChunkSizes
from nfsd3d.train.plan import plan_at
from nfsd3d.train.step import Distillation, step_loss
from nfsd3d.train.task import ScoreDistillation
from nfsd3d.views.prompts import PromptBank


def test_auto_is_stable_diffusion_on_cuda():
    wanted = {
        (machine, prior, choice): wants_compilation(
            compose("nfsd", ["prompt=x", f"machine={machine}", f"prior={prior}", f"machine.compile={choice}"])
        )
        for machine in ("cpu", "cuda")
        for prior in ("shapes", "sd21")
        for choice in ("auto", "true", "false")
    }
    assert {case for case, yes in wanted.items() if yes and case[2] == "auto"} == {("cuda", "sd21", "auto")}
    assert all(yes == (case[2] == "true") for case, yes in wanted.items() if case[2] != "auto")


def test_the_listed_batch_sizes_are_those_of_the_steps():
    def shapes(name, views, at_once=None, perp_neg=False):
        return compiled_batch_sizes(METHODS[name].batch_sizes(views, perp_neg=perp_neg), views, at_once)

    assert shapes("nfsd", 1) == [2, 3] and shapes("nfsd", 4) == [8, 12]
    assert shapes("nfsd", 4, at_once=1) == [1]
    assert shapes("nfsd", 4, at_once=2) == [1, 2]
    assert shapes("nfsd", 4, at_once=4) == [1, 2, 4]  # nine entries are four, four and one
    assert shapes("nfsd", 4, at_once=3) == [1, 2, 3] and shapes("nfsd", 4, at_once=6) == [2, 4, 6]
    assert shapes("nfsd", 4, at_once=8) == [1, 2, 4, 8]
    assert shapes("sds", 4) == shapes("bridge", 4) == [8] and shapes("sds", 4, at_once=4) == [4]
    assert shapes("nfsd", 4, perp_neg=True) == [8, 12, 16, 20] and shapes("sds", 1, perp_neg=True) == [2, 3, 4]
    assert shapes("dds", 1) == [4] and shapes("dds", 2, perp_neg=True) == [8, 10, 12, 14, 16]
    assert shapes("ism", 4) == [1, 2, 4, 8]  # where latents are inverted, any number of them still moves
    assert shapes("sdi", 1) == [2] and shapes("sdi", 4) == [2, 4, 8]


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"vsd"}))
def test_steps_use_only_the_listed_batch_sizes(configure, monkeypatch, name):
    prior = load_prior(EMBEDDED)
    config = configure(**{"train.batch_size": 2})
    bank = PromptBank.build(
        prior, "a red cube", "dull", PROMPTS, needed=METHODS[name].all_prompts, source_prompt="a blue cube"
    )
    seen = set()
    monkeypatch.setattr(prior, "predict_eps", lambda z_t, *_, **named: seen.add(len(z_t)) or torch.zeros_like(z_t))
    images = [ImageBatch("latent", torch.zeros(2, *prior.latent_shape)) for _ in range(2)]
    source = images[1] if METHODS[name].needs_source else None
    distillation = Distillation(METHODS[name], DISTILL, 200)
    for progress in (0.0, 0.9):
        plan = replace(plan_at(config.train, progress), t_min=0.1, t_max=0.4)
        for seed in range(4):
            rng = torch.Generator().manual_seed(seed)
            step_loss(images[0], prior, bank, distillation, CAMERAS, plan, rng, source)
    assert seen and seen <= METHODS[name].batch_sizes(2, perp_neg=False)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler's
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(("name", "views"), [("nfsd", 1), ("nfsd", 4), ("sdi", 2)])
def test_steps_compile_nothing_more(configure, monkeypatch, tmp_path, name, views):
    """Memory layouts count too: another layout triggers a recompilation."""
    compiling = DiffusersPrior.compile
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(DiffusersPrior, "compile", partialmethod(compiling, backend="eager"))
    config = configure(**{"machine.compile": True, "train.batch_size": views, "distill.method": name})
    parts = build_parts(config, load_prior(EMBEDDED))
    compile_prior(config, parts, ChunkSizes(), lambda text: None)
    task = ScoreDistillation.of(config, parts)
    try:
        with torch.compiler.set_stance("fail_on_recompile"):
            for _ in range(6):
                plan = replace(plan_at(config.train, 0.0), t_min=0.1, t_max=0.4)  # on both sides of NFSD's threshold
                task.step(plan).loss.backward()
    finally:
        torch.compiler.reset()


def test_the_cache_outlives_a_restart(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "nfsd3d" / "inductor"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/nfsd3d/inductor")


@pytest.mark.parametrize("chosen", [None, "/somewhere"])
def test_the_cache_is_chosen_before_torch_chooses_it(tmp_path, chosen):
    """Loading a model imports torch's compiler, which sets the variable to a temporary folder."""
    environment = {name: value for name, value in os.environ.items() if name != CACHE_VARIABLE}
    environment |= {"XDG_CACHE_HOME": str(tmp_path)} | ({} if chosen is None else {CACHE_VARIABLE: chosen})
    code = f"import os, nfsd3d.train.run, torch._dynamo.package; print(os.environ['{CACHE_VARIABLE}'])"
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == (chosen or str(tmp_path / "nfsd3d" / "inductor"))


@pytest.fixture
def compiled_with(configure, monkeypatch, tmp_path):
    """(choice, behaviour of compiled networks) -> the prior, the requested compilations, and the log."""
    asked = []
    warmed = []
    original = DiffusersPrior.compile

    def compiling(self, *, batch_unit, unet=True, encoder=True, backend="inductor"):
        asked.append((batch_unit, unet, encoder))
        original(self, batch_unit=batch_unit, unet=unet, encoder=encoder, backend="eager")

    monkeypatch.setattr(DiffusersPrior, "compile", compiling)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def result(choice, failing=None, chunks=None, config=None, **changes):
        config = config or configure(**{"machine.compile": choice, **changes})
        parts, said = build_parts(config, load_prior(EMBEDDED)), []

        def run(*arguments, **options):
            warmed.append((arguments[1], options.get("without_gradient")))
            if failing is not None:
                raise failing

        monkeypatch.setattr("nfsd3d.train.compilation.warm_up_encoder", run)
        monkeypatch.setattr("nfsd3d.train.compilation.warm_up_unet", run)
        compile_prior(config, parts, chunks or ChunkSizes(), said.append)
        return parts.prior, asked, said

    result.warmed = warmed
    return result


@pytest.mark.parametrize("name", ["shapes", "shapes-flow"])
def test_a_trace_has_the_networks_bits_at_any_batch_size(configure, name):
    traced, eager = (build_prior(configure(**{"prior.name": name})) for _ in range(2))
    traced.trace()
    rng = torch.Generator().manual_seed(0)
    for count in (1, 2, 5, 12, 3, 12):
        z = torch.randn(count, *eager.latent_shape, generator=rng)
        z = z.to(memory_format=torch.channels_last)  # as the encoder gives them; the UNet of a CPU gets them contiguous
        t = eager.schedule.time(torch.randint(1000, (count,), generator=rng))
        context = eager.embed(["a red cube"] * count)
        assert torch.equal(traced.predict_eps(z, t, context), eager.predict_eps(z, t, context))
        assert torch.equal(eager.predict_eps(z, t, context), eager.predict_eps(z.contiguous(), t, context))
    traced.compile_nothing()
    assert not traced.is_compiled


@pytest.mark.parametrize("after", [0, 100])
def test_predictions_of_the_same_latents_share_the_unets_start(configure, after, monkeypatch):
    """They are those of predictions by themselves, which also show that no prompt takes another's place."""
    monkeypatch.setattr(denoiser, "_RECORDED", {})
    shared, alone = (build_prior(configure(**{"machine.precision": "float32"})) for _ in range(2))
    shared.trace(after=after)
    starts = []
    shared.denoiser.conv_in.register_forward_pre_hook(lambda module, arguments: starts.append(len(arguments[0])))
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(4, *alone.latent_shape, generator=rng)
    z[3] = torch.nan  # as a diverged scene gives it
    t = alone.schedule.time(torch.tensor([100, 700, 700, 501]))
    z = torch.cat([z, z[[1]], z[[1]]])
    t = torch.cat([t, alone.schedule.time(torch.tensor([700, 701]))])  # the same latent, once at another time
    for entries in (torch.tensor([0, 1, 2, 3, 4, 5, 0, 2, 1, 0]), torch.arange(6).flip(0), torch.tensor([2])):
        context = alone.embed(["a red cube", "", "a blue mug", "a pink tree", "a house"] * 2)[: len(entries)]
        results = [prior.predict_eps(z[entries], t[entries], context) for prior in (shared, alone)]
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert starts == ([2] if after == 0 else [5, 5, 1])  # recording, else one of each: entries 1 and 4 are the same


def test_other_unets_are_traced_as_they_are(configure, monkeypatch):
    monkeypatch.setattr("nfsd3d.prior.noise_predictor.can_share", lambda network: False)
    monkeypatch.setattr(denoiser, "_RECORDED", {})
    traced, eager = (build_prior(configure()) for _ in range(2))
    traced.trace()
    z, t = torch.randn(1, *eager.latent_shape).expand(3, -1, -1, -1), eager.schedule.time(torch.tensor([500] * 3))
    context = eager.embed(["a red cube", "", "a blue mug"])
    assert torch.equal(traced.predict_eps(z, t, context), eager.predict_eps(z, t, context))


def test_what_torch_keeps_of_a_trace_does_not_grow_with_the_jobs_of_a_worker(configure, monkeypatch):
    """Networks of one architecture share a recording, each with its own weights, which go with it."""
    recorded = {}
    monkeypatch.setattr(denoiser, "_RECORDED", recorded)
    weights = []
    for scale in (1.0, 0.5, 2.0):
        traced, eager = (build_prior(configure()) for _ in range(2))
        for prior in (traced, eager):
            with torch.no_grad():
                prior.denoiser.conv_out.weight.mul_(scale)
        before = [name for name, _ in traced.denoiser.named_parameters()]
        traced.trace()
        assert torch.equal(predict(traced), predict(eager)) and traced._predictor.fast.is_traced
        assert [name for name, _ in traced.denoiser.named_parameters()] == before
        weights.append(weakref.ref(next(traced.denoiser.parameters())))
        assert len(recorded) == 1
    del traced, eager, prior
    gc.collect()
    assert [weight() is None for weight in weights[1:]] == [True, True]


def predict(prior):
    return prior.predict_eps(torch.ones(1, *prior.latent_shape), torch.tensor([0.5]), prior.blank_context(1))


def test_the_embedded_models_unet_is_traced_on_a_cpu(compiled_with):
    prior, asked, said = compiled_with("auto")
    results = [predict(prior) for _ in range(TRACED_AFTER)]
    assert not prior._predictor.fast.is_traced
    results += [predict(prior) for _ in range(2)]
    assert prior._predictor.fast.is_traced and asked == said == []
    assert all(torch.equal(result, results[0]) for result in results)
    assert not compiled_with(False)[0].is_compiled
    assert not compiled_with("auto", **{"distill.method": "vsd"})[0].is_compiled


def test_without_a_tracer_a_run_goes_on(compiled_with, monkeypatch):
    monkeypatch.delattr(torch.jit, "trace")
    monkeypatch.setattr(denoiser, "_RECORDED", {})
    prior, _, said = compiled_with("auto")
    for _ in range(TRACED_AFTER + 2):
        predict(prior)
    assert len(said) == 1
    assert "not traced (" in said[0] and "'trace'); steps are slower" in said[0]


def test_a_checkpointed_encoder_is_not_compiled(compiled_with):
    prior, asked, said = compiled_with(True, chunks=ChunkSizes(checkpoint_encoder=True))
    assert asked == [(2, True, False)] and prior._autoencoder._compiled is None and "the UNet;" in said[0]
    assert compiled_with.warmed == [([4, 6], None)]
    everything = {"distill.method": "vsd", "chunks": ChunkSizes(checkpoint_encoder=True)}
    assert compiled_with(True, **everything)[2] == []


def test_an_encoder_that_gets_images_in_chunks_is_not_compiled(compiled_with):
    """A captured graph holds the activations of one call; a step would make several before its backward pass."""
    for at_once, whole in ((1, False), (2, True), (3, True)):
        asked = compiled_with(True, chunks=ChunkSizes(unet_batch_size=at_once))[1]
        assert asked[-1] == (2, True, whole)


def test_latents_need_no_encoder(compiled_with, configure_2d, kind):
    config = configure_2d(**{"machine.compile": True})
    assert compiled_with(True, config=config)[1] == [(3, True, kind == "image")]


def test_the_encoder_is_warmed_as_steps_use_it(monkeypatch):
    prior, seen = load_prior(EMBEDDED), []
    encode = prior.encode
    monkeypatch.setattr(prior, "encode", lambda image: (
        seen.append((len(image), torch.is_grad_enabled())) or encode(image)
    ))  # fmt: skip
    warm_up_encoder(prior, 2, without_gradient=False)
    warm_up_encoder(prior, 1, without_gradient=True)
    assert seen == [(2, True), (1, True), (1, False)]


def test_a_run_logs_that_it_compiles(compiled_with, tmp_path):
    prior, asked, said = compiled_with(True)
    assert asked == [(2, True, True)] and prior._predictor.fast is not None
    assert said[0].startswith("compiling the UNet and the encoder") and f"s (kept in {tmp_path})" in said[1]


def test_ignored_warnings_are_suppressed(compiled_with, monkeypatch):
    text = "Dynamo detected a call to a `functools.lru_cache`-wrapped function at 'upsampling.py:156'."
    compiling = DiffusersPrior.compile
    for words, told in ((text, False), ("something else", True)):
        monkeypatch.setattr(DiffusersPrior, "compile", lambda *arguments, words=words, **options: (
            warnings.warn(words, stacklevel=1) or compiling(*arguments, **options)
        ))  # fmt: skip
        if told:
            with pytest.raises(InputError, match="something else"):  # warnings are errors here
                compiled_with(True)
        else:
            assert compiled_with(True)[0].is_compiled


def test_compiled_code_is_released(compiled_with, monkeypatch):
    reset = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: reset.append(1))
    prior = compiled_with(True)[0]
    release_compiled(prior)
    assert not prior.is_compiled and reset == [1]
    release_compiled(prior)
    assert reset == [1]


def test_nothing_is_compiled_unless_wanted(compiled_with):
    assert compiled_with("auto")[1:] == ([], []) and compiled_with(False)[1:] == ([], [])


def test_vsds_unet_is_not_compiled(compiled_with):
    prior, asked, _ = compiled_with(True, **{"distill.method": "vsd"})
    assert asked == [(2, False, True)] and prior._predictor.fast is None and prior._autoencoder._compiled is not None


def test_if_compiling_fails_auto_continues_and_true_is_an_error(compiled_with, monkeypatch):
    with pytest.raises(InputError, match=r"machine\.compile=true: no C compiler; set machine\.compile=false"):
        compiled_with(True, failing=RuntimeError("no C compiler\nand more"))
    monkeypatch.setattr("nfsd3d.train.compilation.wants_compilation", lambda config: True)
    with monkeypatch.context() as patch:  # nor is a network whose layers cannot be taken apart an end
        patch.setattr(DiffusersPrior, "compile", lambda *arguments, **options: 1 / 0)
        assert "not compiled (division by zero)" in compiled_with("auto")[2][-1]
    # Triton's own errors are no RuntimeErrors, and some say nothing.
    for failing, told in ((RuntimeError("no C compiler\nand more"), "no C compiler"), (LookupError(), "LookupError")):
        prior, _, said = compiled_with("auto", failing=failing)
        assert prior._predictor.fast is None and f"not compiled ({told})" in said[-1]
