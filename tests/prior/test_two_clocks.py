"""A diffusion model and a rectified flow are the same teacher at equal signal-to-noise ratio."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from analytic_prior import AnalyticPrior
from tiny_families import save

from nfsd3d.config.compose import compose
from nfsd3d.distill.methods import METHODS
from nfsd3d.prior.files.download import fetch
from nfsd3d.prior.files.folder import ModelFiles
from nfsd3d.prior.files.locate import EMBEDDED, locate
from nfsd3d.prior.load_prior import load_family_prior, load_prior
from nfsd3d.prior.schedule import RectifiedFlow, VariancePreserving, stable_diffusion_alphas
from nfsd3d.train.build import build_parts
from nfsd3d.train.plan import plan_at
from nfsd3d.train.step import step_loss

CLOCKS = ("own", "flow")


@pytest.fixture(scope="module")
def embedded():
    """The embedded model in double precision, as it is and served as a rectified flow."""
    return {clock: load_prior(EMBEDDED, dtype=torch.float64, clock=clock) for clock in CLOCKS}


def config_of(method, **changes):
    experiment = "dds_2d" if METHODS[method].needs_source else "nfsd_2d"
    overrides = [f"distill={method}", "prompt=a red and white dotted mushroom", "machine=cpu", "prior=shapes"]
    if METHODS[method].needs_source:
        overrides += ["source_prompt=a blue cube", f"source_image={EMBEDDED / 'samples.png'}"]
    overrides += ["generator=latent", "train.batch_size=3", "prompts.view_dependent=true", "prompts.perp_neg=true"]
    return compose(experiment, [*overrides, *(f"{key}={value}" for key, value in changes.items())])


def run(config, prior, steps):
    """The gradient of each step, and the latents at the end, in double precision."""
    prior = copy.copy(prior)
    prior.free_text_encoder = lambda: None  # for the next run
    parts = build_parts(config, prior)
    latents, source = parts.generator.double(), parts.source
    optimizer = torch.optim.SGD(latents.parameters(), lr=0.05)
    gradients = []
    for step in range(steps):
        plan = plan_at(config.train, step / steps)
        arguments = prior, parts.bank, parts.distillation, parts.ranges, plan, parts.rng
        loss = step_loss(latents, *arguments, source=None if source is None else source.double()).loss
        optimizer.zero_grad()
        loss.backward()
        if parts.distillation.lora is not None:
            parts.distillation.lora.optimizer.step()
        gradients.append(next(latents.parameters()).grad.clone())
        optimizer.step()
    return gradients, next(latents.parameters()).detach().clone()


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"vsd"}))
def test_every_methods_gradient_is_the_same_on_both_clocks(embedded, method):
    config = config_of(method)
    (own, flow) = (run(config, embedded[clock], 2)[0] for clock in CLOCKS)
    assert own[0].abs().max() > 0.01
    for one, other in zip(own, flow, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)


def test_vsds_gradient_is_the_same_on_both_clocks():
    config, gradients = config_of("vsd"), []
    for clock in CLOCKS:
        prior = load_prior(EMBEDDED, dtype=torch.float64, clock=clock)
        gradients.append(run(config, prior, 3)[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)


def test_latents_are_the_same_after_60_steps_on_both_clocks(embedded):
    config = config_of("nfsd", **{"train.batch_size": 1})
    own, flow = (run(config, embedded[clock], 60)[1] for clock in CLOCKS)
    assert (own - own.new_tensor(0)).abs().max() > 0.1
    torch.testing.assert_close(flow, own, rtol=1e-6, atol=1e-6)


@pytest.fixture(params=["given", "default"])
def flow(request):
    return RectifiedFlow(stable_diffusion_alphas()) if request.param == "given" else RectifiedFlow()


def test_timesteps_have_the_signal_to_noise_ratio_of_stable_diffusion(flow):
    diffusion, steps = VariancePreserving(stable_diffusion_alphas()), torch.arange(1000)
    times = flow.time(steps)
    assert times.dtype == torch.float64 and (times.diff() > 0).all()
    torch.testing.assert_close(flow.alpha_bar(times), diffusion.alpha_bar(steps), rtol=1e-12, atol=1e-12)
    assert torch.equal(flow.timestep(times), steps)
    shown = [round(float(flow.time(torch.tensor([step]))), 3) for step in (20, 200, 500, 980)]
    assert shown == [0.121, 0.364, 0.618, 0.929]
    assert flow.timestep(torch.tensor([0.0, 0.3641, 1.0])).tolist() == [0, 200, 999]


def test_the_documented_table_of_times_is_right():
    text = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+)\b[^|]*\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) == 7
    flow = RectifiedFlow()
    for step, *shown in rows:
        t = flow.time(torch.tensor([int(step)]))
        alpha_bar = float(flow.alpha_bar(t))
        for value, text in zip((alpha_bar, float(t), alpha_bar / (1 - alpha_bar)), shown, strict=True):
            assert value == pytest.approx(float(text), abs=0.51 * 10.0 ** -len(text.partition(".")[2]))


def test_a_flows_latent_is_the_diffusion_latent_of_equal_ratio_rescaled():
    diffusion, flow = VariancePreserving(stable_diffusion_alphas()), RectifiedFlow()
    z, eps = torch.randn(2, 5, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([0, 20, 200, 700, 999])
    t = flow.time(steps)
    torch.testing.assert_close(
        flow.add_noise(z, eps, t), (1 - t)[:, None, None, None] * z + t[:, None, None, None] * eps
    )
    noised = diffusion.add_noise(z, eps, steps)
    torch.testing.assert_close(flow.rescaled(noised, t), flow.add_noise(z, eps, t), rtol=1e-12, atol=1e-12)


def test_a_ddim_step_on_a_flow_is_eulers():
    flow = RectifiedFlow()
    z, eps = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, t_next = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64), torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
    z_t = flow.add_noise(z, eps, t)
    euler = z_t + (t_next - t)[:, None, None, None] * (eps - z)
    torch.testing.assert_close(flow.ddim_step(z_t, eps, t, t_next), euler)


def test_sampling_a_flow_begins_with_noise_alone():
    times = RectifiedFlow().sampling_times(30)
    assert len(times) == 30 and times[0] == 1 and (times.diff() < 0).all() and times[-1] > 0
    assert RectifiedFlow().sampling_times(1).tolist() == [1.0]


@pytest.mark.parametrize("name", ["ism", "sdi", "sds"])
@pytest.mark.parametrize("eta", [0.0, 0.3])
def test_an_exact_teachers_noisings_are_the_same_on_both_clocks(name, eta):
    means = torch.tensor([0.8, -0.8], dtype=torch.float64)[:, None, None, None].expand(2, 3, 4, 4)
    stds = torch.tensor([0.1, 0.3], dtype=torch.float64)
    prompts = {"bright": torch.tensor([1.0, 0.0]), "": torch.tensor([0.5, 0.5])}
    noising = METHODS[name].noising
    noising = replace(noising, eta=eta) if name == "sdi" else noising
    steps, results = torch.tensor([3, 90, 420, 999]), []
    for schedule in (VariancePreserving(stable_diffusion_alphas()), RectifiedFlow()):
        prior = AnalyticPrior(means, stds, prompts, schedule)
        z = 0.5 * torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        contexts = {name: prior.embed([text] * 4) for name, text in {"cond": "bright", "uncond": ""}.items()}
        t = schedule.time(steps)
        z_t, noise = noising(prior, z, t, contexts, torch.Generator().manual_seed(3))
        results.append((schedule.rescaled(z_t, t) if isinstance(schedule, VariancePreserving) else z_t, noise))
    flow = RectifiedFlow()
    torch.testing.assert_close(flow.rescaled(results[0][0], flow.time(steps)), results[1][0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-9, atol=1e-9)


def test_a_flow_served_as_a_flow_is_itself():
    files = fetch(locate("shapes-flow"))
    own, served = load_prior(files), load_prior(files, clock="flow")
    z, t = torch.randn(3, *own.latent_shape), own.schedule.time(torch.tensor([100, 500, 900]))
    context = own.embed(["a red cube"]).expand(3)
    assert torch.equal(served.schedule.time(torch.tensor([500])), own.schedule.time(torch.tensor([500])))
    assert torch.equal(own.predict_eps(z, t, context), served.predict_eps(z, t, context))


def test_a_family_of_diffusion_models_is_served_as_a_flow_too(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save("sdxl", tmp_path / "model")
    files = ModelFiles(tmp_path / "model", family="sdxl")
    own, flow = (load_family_prior(files, "cpu", torch.float64, clock=clock) for clock in ("own", "flow"))
    assert isinstance(flow.schedule, RectifiedFlow) and not isinstance(own.schedule, RectifiedFlow)
    z, noise = torch.randn(2, 3, *own.latent_shape, dtype=torch.float64)
    steps, context = torch.tensor([50, 500, 950]), own.embed(["a red cube"]).expand(3)
    predicted = [
        prior.predict_eps(prior.schedule.add_noise(z, noise, time := prior.schedule.time(steps)), time, context)
        for prior in (own, flow)
    ]
    assert (predicted[0] - predicted[1]).abs().max() < 1e-9
