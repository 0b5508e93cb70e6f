"""The prior's part of a step asks the device for no number: it runs on one that has none."""

from dataclasses import replace

import pytest
import torch

from nfsd3d.distill.gradient import inject_gradient, predict_noise
from nfsd3d.distill.methods import METHODS
from nfsd3d.generator.pictures import Pictures
from nfsd3d.prior.architectures import random_prior
from nfsd3d.prior.particle import Particle
from nfsd3d.prior.resolve import EMBEDDED
from nfsd3d.prior.stable_diffusion import StableDiffusionPrior
from nfsd3d.prompts import PromptBank
from nfsd3d.train.build import build_parts
from nfsd3d.train.pieces import Pieces
from nfsd3d.train.plan import plan_at
from nfsd3d.train.step import Distillation, step_loss


def a_step(configure, prior, name, pieces=None, perp_neg=False, fine=False, device="meta"):
    """One step of a method on pixels, on ``device``: the loss, the metrics and the pixels."""
    method = METHODS[name]
    config = configure(**{"train.batch_size": 2, "train.t_min": 0.02, "train.t_max": 0.98})
    words = {"source_prompt": "a blue cube", "perp_neg": perp_neg, "fine": fine}
    bank = PromptBank.build(prior, "a red cube", "dull", needed=method.all_prompts, **words)
    generator = Pictures("image", torch.empty(2, 3, 48, 48, device=device))
    source = Pictures("image", torch.empty(2, 3, 48, 48, device=device)) if method.needs_source else None
    particle = None
    if method.needs_particle:
        particle = Particle(prior, rank=2, learning_rate=1e-3, camera_dropout=0.1, seed=0)
    distillation = Distillation(method, 7.5, "sigma2", 200, particle)
    plan = replace(plan_at(config.train, 0.7), pieces=pieces or Pieces())
    from nfsd3d.cameras import CameraRanges

    rng = torch.Generator().manual_seed(0)
    loss, metrics = step_loss(generator, prior, bank, distillation, CameraRanges(), plan, rng, source)
    loss.backward()
    return loss, metrics, generator.values


@pytest.mark.parametrize(("perp_neg", "fine"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"vsd"}))
def test_a_step_of_every_method_runs_without_a_number(configure, narrow, name, perp_neg, fine):
    prior = random_prior(narrow, "meta", image_size=64)
    loss, metrics, values = a_step(configure, prior, name, perp_neg=perp_neg, fine=fine)
    assert loss.is_meta and values.grad.is_meta and values.grad.shape == (2, 3, 48, 48)
    assert all(metric.is_meta for metric in metrics.values())
    assert prior.evaluations >= 4


def test_a_step_in_pieces_runs_without_a_number(configure, narrow):
    prior = random_prior(narrow, "meta", image_size=64)
    assert a_step(configure, prior, "nfsd", Pieces(None, 1, True))[0].is_meta


def test_what_asks_for_a_number_would_fail_there():
    """The tests above can fail."""
    tensor = torch.empty(3, device="meta")
    for ask in (
        lambda: tensor.sum().item(),
        lambda: tensor.nonzero(),
        lambda: tensor[tensor > 0],
        lambda: tensor.cpu(),
    ):
        with pytest.raises((NotImplementedError, RuntimeError)):
            ask()


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_half_precision_networks_leave_float32_where_it_matters(configure, precision):
    """Latents, predictions, direction and gradient; only the networks' own work is halved."""
    prior = StableDiffusionPrior.load(EMBEDDED, dtype=precision)
    assert {tensor.dtype for tensor in prior.tensors() if tensor.is_floating_point()} == {precision}
    parts = build_parts(configure(), prior)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    z = prior.encode(image)
    t, noise = torch.tensor([100, 700]), torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    from nfsd3d.cameras import orbit

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
