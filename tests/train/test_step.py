"""One optimisation step: its gradient, and descent along it."""

import copy
from dataclasses import replace

import pytest
import torch
from small_settings import DISTILL

from nfsd3d.config.compose import compose
from nfsd3d.config.schema import Config
from nfsd3d.distill.methods import METHODS, Method
from nfsd3d.errors import InputError
from nfsd3d.generators.base import Images, Latents
from nfsd3d.generators.images import ImageBatch
from nfsd3d.train.build import build_parts, viewing_cameras
from nfsd3d.train.memory.chunking import ChunkSizes
from nfsd3d.train.plan import plan_at
from nfsd3d.train.ranks import Ranks
from nfsd3d.train.step import (
    Distillation,
    _norm,
    _rendered,
    draw_background,
    draw_shading,
    fork,
    step_loss,
)

pytestmark = pytest.mark.usefixtures("tiny_prior")

NO_REGULARIZERS = {"train.regularizers": {"sparsity": 0.0, "opaque": 0.0, "orient": 0.0, "z_variance": 0.0}}


def metrics_of(config, method):
    parts = build_parts(config)
    distillation = Distillation(METHODS[method], DISTILL, parts.distillation.threshold)
    plan = plan_at(config.train, 0.0)
    result = step_loss(parts.generator, parts.prior, parts.bank, distillation, parts.ranges, plan, parts.rng)
    return result.evaluations, {name: float(value) for name, value in result.metrics.tensors().items()}


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
        method: metrics_of(configure(**{"train.t_min": 0.5, "train.t_max": 0.98}), method)[0]
        for method in ("sds", "csd", "nfsd")
    }
    assert evaluations == {"sds": 4, "csd": 4, "nfsd": 6}  # for two views
    early = configure(**{"train.t_min": 0.0, "train.t_max": 0.1})
    assert metrics_of(early, "nfsd")[0] == 4


SUFFIXES = {"distill.better_suffix": ", sharp", "distill.worse_suffix": ", blurry"}
GENERATIVE = sorted(name for name, method in METHODS.items() if not (method.needs_source or method.needs_lora))


def step_of(config, progress=0.0, **options):
    """One step of a run: its parts and its result."""
    parts = build_parts(config)
    result = step_loss(
        parts.generator,
        parts.prior,
        parts.bank,
        parts.distillation,
        parts.ranges,
        plan_at(config.train, progress),
        parts.rng,
        **options,
    )
    return parts, result


@pytest.mark.parametrize(
    ("method", "evaluations"),
    [
        ("sds", 2),
        ("csd", 2),
        ("nfsd", 3),
        ("ism", 4 + 3),
        ("sdi", 16 + 2),
        ("bridge", 2),
        ("asd", 3),
        ("rfds", 2),
        ("rfds_rev", 1 + 2),
        ("ucm", 3 + 2),
    ],
)
@pytest.mark.parametrize("perp_neg", [False, True])
def test_a_step_costs_what_the_table_says(configure, method, evaluations, perp_neg):
    # At t = 75 of 100, ISM goes in strides of 20 to 70, and SDI in 8 steps of 10, each with two prompts.
    changes = {**SUFFIXES, "train.t_min": 0.75, "train.t_max": 0.75, "cameras.overhead_probability": 0.0}
    config = configure(**changes, **{"distill.method": method, "prompts.perp_neg": perp_neg})
    for progress in (0.0, 0.75):
        _, result = step_of(config, progress)
        second_half_of_bridge = method == "bridge" and progress > 0.5
        extra = 2 if perp_neg and not second_half_of_bridge else 0
        assert result.evaluations == config.train.batch_size * (evaluations + extra)
        assert all(value.isfinite() for value in result.metrics.tensors().values())


@pytest.mark.parametrize("method", GENERATIVE)
def test_the_same_seed_gives_the_same_steps(configure, method):
    config = configure(**SUFFIXES, **{"distill.method": method, "prompts.perp_neg": True})
    losses = []
    for _ in range(2):
        parts, values = build_parts(config), []
        for progress in (0.0, 0.4, 0.6):
            arguments = parts.generator, parts.prior, parts.bank, parts.distillation, parts.ranges
            loss = step_loss(*arguments, plan_at(config.train, progress), parts.rng).loss
            parts.optimizer.zero_grad()
            loss.backward()
            parts.optimizer.step()
            values.append(loss.item())
        losses.append(values)
    assert losses[0] == losses[1] and len(set(losses[0])) == 3


def test_the_guidance_scale_may_change_over_training(configure):
    def norm(progress, scale, factor=1.0):
        changes = {"distill.method": "csd", "distill.guidance_scale": scale, "distill.guidance_factor": factor}
        return float(step_of(configure(**NO_REGULARIZERS, **changes), progress)[1].metrics.grad_norm)

    rising, falling = [[0.0, 1.0], [1.0, 5.0]], [[0.0, 1.0], [1.0, 0.0]]
    assert norm(0.5, rising) == norm(0.5, 3.0) == norm(0.5, 6.0, falling)
    assert norm(0.75, rising) > norm(0.75, 3.0) > norm(0.75, 6.0, falling)


class Watched:
    """A generator that records how it is rendered."""

    def __init__(self, generator):
        self.generator, self.calls = generator, []

    def render(self, cameras, rng, options):
        self.calls.append((rng.get_state(), options))
        return self.generator.render(cameras, rng, options)


def test_an_edit_of_its_own_source_has_no_gradient(configure):
    """The source has the same cameras, sample positions, background, noise and prompt, and needs no normals."""
    config = configure(**{"train.regularizers.orient": 1.0, "generator.normals": "finite_difference"})
    parts, plan = build_parts(config), plan_at(config.train, 0.0)
    bank = replace(parts.bank, embeddings={**parts.bank.embeddings, "source_cond": parts.bank.embeddings["cond"]})
    edit = Distillation(METHODS["dds"], DISTILL, parts.distillation.threshold)
    scene, source = Watched(parts.generator), Watched(copy.deepcopy(parts.generator))
    arguments = parts.prior, bank, edit, parts.ranges, plan, parts.rng
    result = step_loss(scene, *arguments, source=source)
    assert result.metrics.grad_norm == 0 and result.metrics.grad_norm_delta_c > 0
    (positions, options), (same, of_source) = *scene.calls, *source.calls
    assert torch.equal(positions, same) and options.normals
    assert of_source == replace(options, normals=False)


def test_a_step_renders_as_its_plan_says(configure):
    config = configure(**{"train.shading.ambient": 0.25, "train.regularizers.orient": 0.0})
    parts = build_parts(config)
    plan = replace(plan_at(config.train, 0.0), chunks=ChunkSizes(rays_per_chunk=70))
    scene = Watched(parts.generator)
    before = parts.rng.get_state()
    step_loss(scene, parts.prior, parts.bank, parts.distillation, parts.ranges, plan, parts.rng)
    ((state, options),) = scene.calls
    assert (options.ambient, options.rays_per_chunk, options.normals) == (0.25, 70, False)
    assert not torch.equal(state, before)  # after the cameras


@pytest.mark.parametrize(("size", "checkpointed"), [(1, False), (None, True), (2, True)])
def test_the_prior_is_called_on_the_plans_chunks(configure, monkeypatch, size, checkpointed):
    config = configure(**{"distill.method": "sds"})
    parts = build_parts(config)
    calls, checkpoints = [], []
    predict, encode = parts.prior.predict_eps, parts.prior.encode
    monkeypatch.setattr(
        parts.prior, "predict_eps", lambda z_t, *rest, **named: calls.append(len(z_t)) or predict(z_t, *rest, **named)
    )
    monkeypatch.setattr(
        parts.prior,
        "encode",
        lambda image, *, checkpoint=False: checkpoints.append(checkpoint) or encode(image, checkpoint=checkpoint),
    )
    chunks = ChunkSizes(unet_batch_size=size, checkpoint_encoder=checkpointed)
    plan = replace(plan_at(config.train, 0.0), chunks=chunks)
    step_loss(parts.generator, parts.prior, parts.bank, parts.distillation, parts.ranges, plan, parts.rng)
    assert max(calls) == (size or sum(calls)) and sum(calls) == 2 * config.train.batch_size
    assert set(checkpoints) == {checkpointed}


def test_a_fork_of_the_generator_has_a_seed_of_63_bits():
    seeds = [fork(torch.Generator().manual_seed(seed)).initial_seed() for seed in range(40)]
    assert len(set(seeds)) == 40 and min(seeds) > 2**50 and max(seeds) > 2**62
    rng = torch.Generator().manual_seed(0)
    expected = int(torch.randint(2**63 - 1, (), generator=torch.Generator().manual_seed(0)))
    assert fork(rng).initial_seed() == expected


def test_shading_is_drawn_with_its_probabilities():
    rng = torch.Generator().manual_seed(0)

    def shares(lambertian, textureless):
        drawn = [draw_shading(rng, lambertian, textureless) for _ in range(600)]
        return {name: drawn.count(name) / len(drawn) for name in set(drawn)}

    assert shares(0.0, 0.5) == {"albedo": 1.0} and shares(1.0, 1.0) == {"textureless": 1.0}
    assert shares(1.0, 0.0) == {"lambertian": 1.0}
    expected = {"albedo": 0.4, "lambertian": 0.45, "textureless": 0.15}
    assert shares(0.6, 0.25) == pytest.approx(expected, abs=0.06)


def test_random_backgrounds_are_spread_evenly_over_the_views():
    rng = torch.Generator().manual_seed(0)
    assert not draw_background(rng, 4, 0.0)[1].any() and draw_background(rng, 4, 1.0)[1].all()
    replaced = torch.stack([draw_background(rng, 4, 0.5)[1] for _ in range(200)])
    assert (replaced.sum(1) == 2).all()  # exactly half of every batch
    assert all(0.35 < share < 0.65 for share in replaced.double().mean(0).tolist())
    single = torch.stack([draw_background(rng, 1, 0.25)[1] for _ in range(400)])
    assert 0.18 < single.double().mean() < 0.32
    colours, _ = draw_background(rng, 3, 0.5)
    assert colours.shape == (3, 3) and 0 <= colours.min() < colours.max() <= 1


class SecondOfTwo(Ranks):
    """The second of two ranks, which has the second half of a batch."""

    alone = False

    def own(self, batch):
        return batch[len(batch) // 2 :]


@pytest.mark.parametrize("kind", ["latent", "image"])
def test_a_rank_renders_its_share_of_a_batch_of_images(kind):
    values = torch.arange(4.0)[:, None, None, None].expand(4, 3, 2, 2)
    shown = _rendered(ImageBatch(kind, values), None, torch.Generator(), None, SecondOfTwo())
    tensor = shown.latent if kind == "latent" else shown.image
    assert isinstance(shown, Latents if kind == "latent" else Images) and torch.equal(tensor, values[2:])


def test_gradient_norms_are_means_over_the_views():
    grad = torch.zeros(2, 3, 2, 2)
    grad[0, 0, 0, 0], grad[1] = 2.0, 1.0
    assert float(_norm(grad)) == pytest.approx((2 + 12**0.5) / 2)


def test_editing_without_a_source_prompt_says_what_is_missing(configure):
    with pytest.raises(InputError, match="source_prompt"):
        build_parts(configure(**{"distill.method": "dds"}))


def test_an_unknown_method_names_the_nearest(configure):
    with pytest.raises(InputError, match=r"distill\.method=nfsdd: no such method \(did you mean nfsd"):
        build_parts(configure(**{"distill.method": "nfsdd"}))


@pytest.mark.parametrize("perp_neg", [False, True])  # which changes nothing in a method without eps_uncond
def test_a_plugin_method_is_a_function_a_row_and_a_file(base_config, tmp_path, monkeypatch, perp_neg):
    def mine(p, s):
        return s * (p.cond - p.neg)

    monkeypatch.setitem(METHODS, "mine", Method(mine, predictions=("cond", "neg")))
    (tmp_path / "distill").mkdir()
    (tmp_path / "distill" / "mine.yaml").write_text("method: mine\nguidance_scale: 7.5\nweighting: sigma2\n")
    (tmp_path / "own.yaml").write_text("defaults: [nfsd, _self_]\n")
    overrides = ["prompt=a red cube", "machine=cpu", "backend=torch", "prior=shapes", "distill=mine"]
    own = compose(tmp_path / "own.yaml", overrides)
    values = base_config.to_dict()
    prompts = {**values["prompts"], "perp_neg": perp_neg}
    config = Config.from_dict({**values, "prompts": prompts, "distill": own.to_dict()["distill"]})
    parts, result = step_of(config)
    assert parts.distillation.method.function is mine and result.evaluations == 4
    assert result.loss.isfinite() and all(value.isfinite() for value in result.metrics.tensors().values())
    assert result.metrics.grad_norm > 0


@pytest.mark.parametrize("random_background", [0.0, 0.5])
def test_the_gradient_reaches_every_group_of_parameters(configure, random_background):
    config = configure(**{"train.random_background": random_background})  # half of two views have the learnt one
    parts = build_parts(config)
    result = step_loss(
        parts.generator, parts.prior, parts.bank, parts.distillation, parts.ranges, plan_at(config.train, 0), parts.rng
    )
    assert not any(value.requires_grad for value in result.metrics.tensors().values())
    result.loss.backward()
    for name, parameters in parts.generator.parameter_groups().items():
        assert max(float(parameter.grad.abs().max()) for parameter in parameters) > 0, name


def test_the_orientation_penalty_asks_for_normals(configure):
    config = configure(**{"train.regularizers.orient": 1.0, "generator.normals": "finite_difference"})
    parts = build_parts(config)
    result = step_loss(
        parts.generator, parts.prior, parts.bank, parts.distillation, parts.ranges, plan_at(config.train, 0), parts.rng
    )
    assert torch.isfinite(result.loss)


@pytest.mark.parametrize("method", GENERATIVE)
def test_descent_makes_the_render_brighter_for_a_prompt_of_brightness(configure, method):
    """The prompt means images of grey .8, the initial ones are of grey .5."""
    config = configure(
        **NO_REGULARIZERS,
        **SUFFIXES,
        **{"train.random_background": 0.0, "train.batch_size": 4, "distill.method": method},
    )
    parts = build_parts(config)
    plan = plan_at(config.train, 0.0)
    brightness = []
    for step in range(25):
        parts.generator.update(step, parts.rng)
        arguments = parts.generator, parts.prior, parts.bank, parts.distillation, parts.ranges
        loss = step_loss(*arguments, plan, parts.rng).loss
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        if step % 24 == 0:
            view = parts.generator.render_in_chunks(viewing_cameras(config, 4, 16))
            brightness.append(float(view.image.mean()))
    assert brightness[-1] > brightness[0] + 0.05
