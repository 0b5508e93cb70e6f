"""Steps with captured CUDA graphs equal eager steps: no result is read after a replay has overwritten it.

The GPU and the capture are fake. A replay writes its result into the memory of the previous one, overwrites with NaN
the results of graphs in the same memory pool, and can be differentiated only until the next replay.
"""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fake_gpu import fake_gpu
from small_settings import CAMERAS, DISTILL

from nfsd3d.distill.methods import METHODS
from nfsd3d.prior.architectures import random_prior
from nfsd3d.prior.compiled.cuda_graphs import CapturedGraph
from nfsd3d.prior.lora import LoraNetwork
from nfsd3d.train.build import build_generator
from nfsd3d.train.compilation import compile_prior
from nfsd3d.train.memory.chunking import ChunkSizes
from nfsd3d.train.plan import plan_at
from nfsd3d.train.step import Distillation, step_loss
from nfsd3d.views.prompts import PromptBank

ON_CUDA = {"machine.name": "cuda", "machine.device": "cuda", "machine.precision": "float32"}


NEAR = 1e-3
"""Tolerance of gradients, relative to their norm."""


@pytest.fixture
def recordings(monkeypatch):
    """The replays so far: (number of the graph, whether the replay is to be differentiated)."""
    calls, of_pool, handles, numbers = [], {}, iter(range(99)), iter(range(99))

    def record(function, arguments, *, num_warmup_iters, pool):
        last, number = SimpleNamespace(), next(numbers)
        result = function(*arguments).detach().clone()
        sharing = [] if pool is None else of_pool.setdefault(pool, [])
        sharing.append(result)

        class Replayed(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *given):
                calls.append((number, any(ctx.needs_input_grad)))
                for own, one in zip(arguments, given, strict=True):
                    own.data.copy_(one)
                for other in sharing:
                    other.fill_(float("nan"))
                last.inputs = [own.detach().clone().requires_grad_(own.requires_grad) for own in arguments]
                with torch.enable_grad():
                    last.output = function(*last.inputs)
                ctx.of = last.output
                result.copy_(last.output.detach())
                return result.detach()

            @staticmethod
            def backward(ctx, gradient):
                assert ctx.of is last.output, "another forward pass has taken the place of this one's activations"
                wanted = [one for one in last.inputs if one.requires_grad]
                found = iter(torch.autograd.grad(last.output, wanted, gradient))
                return tuple(next(found) if one.requires_grad else None for one in last.inputs)

        return Replayed.apply

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    # Its sums come in another order, and inverting (ISM, SDI) amplifies how they are rounded.
    monkeypatch.setattr("nfsd3d.prior.autoencoder.frozen_encoder", lambda vae: vae)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles), raising=False)
    return calls


def gradients_of_steps(configure, narrow, name, *, compiled, perp_neg, chunks):
    """The gradients of two steps of a method on a scene, with timesteps on both sides of NFSD's threshold."""
    method = METHODS[name]
    config = configure(**ON_CUDA, **{"machine.compile": compiled, "prompts.perp_neg": perp_neg,
                                     "train.t_min": 0.05, "train.t_max": 0.4})  # fmt: skip
    with fake_gpu() as gpu:
        prior = random_prior(narrow, "cuda", image_size=64)
        bank = PromptBank.build(prior, "a red cube", "dull", config.prompts,
                                needed=method.all_prompts, source_prompt="a blue cube")  # fmt: skip
        lora = LoraNetwork(prior, rank=2, learning_rate=1e-3, camera_dropout=0.1, seed=0) if name == "vsd" else None
        distillation = Distillation(method, DISTILL, 200, lora)
        generator = build_generator(config)
        source = copy.deepcopy(generator).requires_grad_(False) if method.needs_source else None
        compile_prior(config, SimpleNamespace(prior=prior, distillation=distillation), chunks, lambda text: None)
        rng, found = torch.Generator().manual_seed(0), []
        generator.update(0, rng)
        plan = replace(plan_at(config.train, 0.7), chunks=chunks)
        for _ in range(2):
            loss = step_loss(generator, prior, bank, distillation, CAMERAS, plan, rng, source).loss
            parameters = list(generator.field.parameters())
            if lora is not None:
                lora.optimizer.step()
            found.append([gradient.clone() for gradient in torch.autograd.grad(loss, parameters)])
        assert gpu.errors == []
    return found, prior


def assert_near(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.isfinite().all() and other.abs().max() > 0
            assert (one - other).norm() <= NEAR * other.norm()


@pytest.mark.parametrize(("name", "perp_neg"), [*((name, False) for name in sorted(METHODS)), ("nfsd", True)])
def test_captured_networks_give_the_same_steps(configure, narrow, recordings, name, perp_neg):
    common = dict(perp_neg=perp_neg, chunks=ChunkSizes())
    expected, _ = gradients_of_steps(configure, narrow, name, compiled=False, **common)
    assert recordings == []
    found, prior = gradients_of_steps(configure, narrow, name, compiled=True, **common)
    assert isinstance(prior._autoencoder._compiled, CapturedGraph)
    assert (isinstance(getattr(prior._predictor.fast, "run", None), CapturedGraph)) == (
        name != "vsd"
    )  # whose network is switched in between
    assert sum(differentiated for _, differentiated in recordings) == 3  # one to record, and one a step
    # The encoder's, and that of a source; one for each number of the UNet's rows.
    assert len({number for number, _ in recordings}) >= 1 + METHODS[name].needs_source + (name != "vsd")
    assert_near(found, expected)


def test_an_encoder_that_gets_single_images_is_not_captured(configure, narrow, recordings):
    common = dict(perp_neg=False, chunks=ChunkSizes(unet_batch_size=1))
    expected, _ = gradients_of_steps(configure, narrow, "dds", compiled=False, **common)
    found, prior = gradients_of_steps(configure, narrow, "dds", compiled=True, **common)
    assert prior._autoencoder._compiled is None and isinstance(prior._predictor.fast.run, CapturedGraph)
    assert_near(found, expected)


def test_the_fake_capture_detects_a_second_forward_pass(recordings):
    network = torch.nn.Linear(3, 3).requires_grad_(False)
    captured = CapturedGraph(network.forward)
    first, second = (torch.rand(2, 3, requires_grad=True) for _ in range(2))
    kept = captured(first) * 1
    captured(second).sum().backward()
    with pytest.raises(AssertionError, match="another forward pass"):
        kept.sum().backward()
