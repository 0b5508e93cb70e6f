"""A step on a GPU, which here is fake: everything is in its place, and the program waits for hardly anything."""

import copy
from dataclasses import replace

import pytest
import torch
from fake_gpu import fake_gpu
from small_settings import CAMERAS, DISTILL, PROMPTS

from nfsd3d.cameras import orbit
from nfsd3d.distill.gradient import inject_gradient, predict_noise
from nfsd3d.distill.methods import METHODS
from nfsd3d.prior.architectures import random_prior
from nfsd3d.prior.files.resolve import EMBEDDED
from nfsd3d.prior.lora import LoraNetwork
from nfsd3d.prior.stable_diffusion import StableDiffusionPrior
from nfsd3d.prompts import PromptBank
from nfsd3d.train.build import build_generator, build_optimizer, build_parts
from nfsd3d.train.loop import drop_unless_finite
from nfsd3d.train.memory.chunking import ChunkSizes
from nfsd3d.train.plan import plan_at
from nfsd3d.train.step import Distillation, step_loss

ON_CUDA = {"machine.name": "cuda", "machine.device": "cuda", "machine.precision": "float32"}
COUNTING = "(beside) aten._local_scalar_dense: generators/nerf/sampling/sampling.py"
"""Where the number of samples is read: from a queue of its own, which is not the step's."""


def waits_of_a_step(configure, narrow, name, *, chunks=None, perp_neg=False, fine=False, **changes):
    """Where a step of a method on a scene waits for the GPU; the second, when all is where it stays."""
    method = METHODS[name]
    config = configure(**ON_CUDA, **{"train.t_min": 0.02, "train.t_max": 0.98, **changes})
    rng = torch.Generator().manual_seed(0)
    with fake_gpu() as gpu:
        prior = random_prior(narrow, "cuda", image_size=64)
        words = replace(PROMPTS, perp_neg=perp_neg, views="fine" if fine else "coarse")
        needed = {"needed": method.all_prompts, "source_prompt": "a blue cube"}
        bank = PromptBank.build(prior, "a red cube", "dull", words, **needed)
        lora = LoraNetwork(prior, rank=2, learning_rate=1e-3, camera_dropout=0.1, seed=0) if name == "vsd" else None
        distillation = Distillation(method, DISTILL, 200, lora)
        generator = build_generator(config)
        source = copy.deepcopy(generator).requires_grad_(False) if method.needs_source else None
        optimizer = build_optimizer(generator, config.train)
        plan = replace(plan_at(config.train, 0.7), chunks=chunks or ChunkSizes())
        generator.update(0, rng)
        for _ in range(2):
            gpu.waits.clear()
            loss, metrics = step_loss(generator, prior, bank, distillation, CAMERAS, plan, rng, source, step_lora=False)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(list(generator.parameters()), 1.0)
            drop_unless_finite([optimizer], norm)
            optimizer.step()
            waits = list(gpu.waits)
            gradients = [parameter.grad for parameter in generator.field.parameters()]
            assert all(gradient.is_cuda and gradient.abs().max() > 0 for gradient in gradients)
            optimizer.zero_grad(set_to_none=True)
        assert all(metric.is_cuda for metric in metrics.values())
        assert gpu.errors == []
    return waits


@pytest.mark.parametrize(("perp_neg", "fine"), [(False, False), (True, True)])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_step_of_every_method_waits_for_nothing_of_its_own(configure, narrow, name, perp_neg, fine):
    """The samplers' reference has more to wait for than the number of samples; in the queue beside it, too."""
    waits = waits_of_a_step(configure, narrow, name, perp_neg=perp_neg, fine=fine)
    assert waits and all(wait.startswith("(beside)") and "sampling/sampling.py" in wait for wait in waits)


@pytest.mark.usefixtures("triton_interpreter")
@pytest.mark.parametrize("chunks", [None, ChunkSizes(100, 1, True)])
def test_triton_reads_the_number_of_samples_and_no_other(configure, narrow, chunks):
    kernels = {"backend.field": "triton", "backend.sampler": "triton"}
    waits = waits_of_a_step(configure, narrow, "nfsd", chunks=chunks, **kernels)
    assert waits[0].startswith(COUNTING)
    # In chunks also where each of them ends.
    assert len(waits) == (1 if chunks is None else 2) and all("tolist()" in wait for wait in waits[1:])


@pytest.mark.parametrize(
    "changes",
    [
        {"train.shading": {"lambertian": 1.0, "textureless": 0.5, "ambient": 0.3}},
        {"train.regularizers.orient": 0.01, "generator.normals": "finite_difference"},
    ],
)
def test_normals_wait_for_the_number_of_visible_samples(configure, narrow, changes):
    waits = waits_of_a_step(configure, narrow, "nfsd", **changes)
    (own,) = (wait for wait in waits if not wait.startswith("(beside)"))
    assert "nonzero" in own and "nerf/nerf.py" in own


def test_pruning_waits_for_the_number_of_samples_that_it_leaves(configure, narrow):
    """It asks the network, which the step before is still changing."""
    waits = waits_of_a_step(configure, narrow, "nfsd", **{"generator.prune_alpha": 0.01})
    (own,) = (wait for wait in waits if not wait.startswith("(beside)"))
    assert "nonzero" in own and "compositing/compositing.py" in own


def test_the_occupancy_grid_waits_for_what_is_known_already(configure):
    """Which cells are occupied is read beside, and the network is asked without a number; the next view then waits."""
    config = configure(**ON_CUDA)
    with fake_gpu() as gpu:
        generator, rng = build_generator(config), torch.Generator().manual_seed(0)
        cameras = orbit(1, 8)
        generator.update(0, rng)
        generator.render(cameras, rng)
        gpu.waits.clear()
        generator.update(6, rng)
        assert gpu.waits and all(wait.startswith("(beside)") for wait in gpu.waits)
        generator.render(cameras, rng)
        assert gpu.errors == []


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_half_precision_networks_leave_float32_where_it_matters(configure, precision):
    """Latents, predictions, direction and gradient; only the networks' own work is halved."""
    prior = StableDiffusionPrior.load(EMBEDDED, dtype=precision)
    assert {tensor.dtype for tensor in prior.tensors() if tensor.is_floating_point()} == {precision}
    parts = build_parts(configure(), prior)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    z = prior.encode(image)
    t, noise = torch.tensor([100, 700]), torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    contexts = parts.bank.contexts(orbit(2, 8))
    z_t = prior.schedule.add_noise(z.detach(), noise, t)
    p = predict_noise(prior, z_t, t, contexts, METHODS["nfsd"], noise=noise, threshold=200)
    direction = METHODS["nfsd"].function(p, 7.5)
    assert {x.dtype for x in (z, z_t, p.cond, p.uncond, p.neg, direction, contexts["cond"])} == {torch.float32}
    # A direction that half precision would round away beside the latent still reaches the image.
    loss = inject_gradient(z, torch.full_like(z, 1e-4) * direction.sign())
    assert loss.dtype == torch.float32
    loss.backward()
    assert image.grad.dtype == torch.float32 and image.grad.abs().max() > 0
