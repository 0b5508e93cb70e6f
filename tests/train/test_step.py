"""One step: what its gradient is, and that following it leads where the prior wants."""

import pytest
import torch

from nfsd3d.distill.methods import METHODS
from nfsd3d.train.build import build_parts, viewing_cameras
from nfsd3d.train.plan import plan_at
from nfsd3d.train.step import Distillation, step_loss

pytestmark = pytest.mark.usefixtures("tiny_prior")

NO_REGULARIZERS = {"train.regularizers": {"sparsity": 0.0, "opaque": 0.0, "orient": 0.0, "z_variance": 0.0}}


def metrics_of(config, method):
    parts = build_parts(config)
    distillation = Distillation(METHODS[method], 7.5, "sigma2", parts.distillation.threshold)
    plan = plan_at(config.train, 0.0)
    _, metrics = step_loss(parts.generator, parts.prior, parts.bank, distillation, parts.ranges, plan, parts.rng)
    return parts, {name: float(value) for name, value in metrics.items()}


def test_the_metrics_split_the_gradient(configure):
    # Below NFSD's threshold, where its rest is the empty prompt's whole prediction.
    config = configure(**{**NO_REGULARIZERS, "train.t_min": 0.02, "train.t_max": 0.15})
    runs = {method: metrics_of(config, method)[1] for method in ("csd", "sds", "nfsd")}
    # The same seed, hence the same cameras, timesteps and noise: the condition part is the same for all.
    assert runs["csd"]["grad_norm_delta_c"] == runs["sds"]["grad_norm_delta_c"] == runs["nfsd"]["grad_norm_delta_c"] > 0
    assert runs["csd"]["grad_norm"] == pytest.approx(runs["csd"]["grad_norm_delta_c"])
    assert runs["csd"]["grad_norm_rest"] == pytest.approx(0, abs=1e-5)
    assert runs["sds"]["grad_norm_rest"] > 0.01 and runs["nfsd"]["grad_norm_rest"] > 0.01
    assert 0 < runs["nfsd"]["opacity"] < 1 and runs["nfsd"]["samples_per_ray"] > 0


def test_a_step_costs_no_more_evaluations_than_its_method_needs(configure):
    evaluations = {
        method: metrics_of(configure(**{"train.t_min": 0.5, "train.t_max": 0.98}), method)[0].prior.evaluations
        for method in ("sds", "csd", "nfsd")
    }
    assert evaluations == {"sds": 4, "csd": 4, "nfsd": 6}  # for two views
    early = configure(**{"train.t_min": 0.0, "train.t_max": 0.1})
    assert metrics_of(early, "nfsd")[0].prior.evaluations == 4


@pytest.mark.parametrize("random_background", [0.0, 0.5])
def test_the_gradient_reaches_every_group_of_parameters(configure, random_background):
    config = configure(**{"train.random_background": random_background})  # half of two views have the learnt one
    parts = build_parts(config)
    loss, metrics = step_loss(
        parts.generator, parts.prior, parts.bank, parts.distillation, parts.ranges, plan_at(config.train, 0), parts.rng
    )
    assert not any(value.requires_grad for value in metrics.values())
    loss.backward()
    for name, parameters in parts.generator.parameter_groups().items():
        assert max(float(parameter.grad.abs().max()) for parameter in parameters) > 0, name


def test_the_orientation_penalty_asks_for_normals(configure):
    config = configure(**{"train.regularizers.orient": 1.0, "generator.normals": "finite_difference"})
    parts = build_parts(config)
    loss, _ = step_loss(
        parts.generator, parts.prior, parts.bank, parts.distillation, parts.ranges, plan_at(config.train, 0), parts.rng
    )
    assert torch.isfinite(loss)


@pytest.mark.parametrize("method", ["nfsd", "sds", "csd"])
def test_descent_makes_the_render_brighter_as_the_prompt_asks(configure, method):
    """The prompt means images of grey .8, the initial ones are of grey .5."""
    config = configure(
        **NO_REGULARIZERS, **{"train.random_background": 0.0, "train.batch_size": 4, "distill.method": method}
    )
    parts = build_parts(config)
    plan = plan_at(config.train, 0.0)
    brightness = []
    for step in range(25):
        parts.generator.update(step, parts.rng)
        loss, _ = step_loss(parts.generator, parts.prior, parts.bank, parts.distillation, parts.ranges, plan, parts.rng)
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        if step % 24 == 0:
            view = parts.generator.render_in_chunks(viewing_cameras(config, 4, 16))
            brightness.append(float(view.image.mean()))
    assert brightness[-1] > brightness[0] + 0.05
