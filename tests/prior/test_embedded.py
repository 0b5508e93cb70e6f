"""The shipped prior: its samples, and sixty steps of NFSD, compared with true renders."""

from pathlib import Path

import pytest
import torch

import nfsd3d
from nfsd3d.config.compose import compose
from nfsd3d.generators.base import RenderOptions
from nfsd3d.prior.files.download import fetch
from nfsd3d.prior.files.locate import EMBEDDED_FLOW, locate
from nfsd3d.prior.load_prior import load_prior
from nfsd3d.prior.sampling import ddim_sample
from nfsd3d.prior.schedule import RectifiedFlow
from nfsd3d.prior.vocabulary import check_prompt
from nfsd3d.shapes.world.degrade import NEGATIVE_WORDS
from nfsd3d.shapes.world.grammar import Composition, held_out, parse_prompt
from nfsd3d.shapes.world.render import render_views
from nfsd3d.train.build import build_parts
from nfsd3d.train.plan import plan_at
from nfsd3d.train.step import step_loss
from nfsd3d.views.cameras import orbit

MODEL = Path(nfsd3d.__file__).parent / "prior" / "shapes"
PROMPT = "a red and white dotted mushroom"
VIEWS = 8


@pytest.fixture(scope="module")
def prior():
    return load_prior(MODEL)


def true_views(composition: Composition, background: float = 0.5) -> torch.Tensor:
    """[8,3,64,64] true renders all around, before gray."""
    cameras = orbit(VIEWS, 64, elevation_deg=15)
    backgrounds = torch.full((VIEWS, 3, 64, 64), background)
    return render_views([composition] * VIEWS, cameras, backgrounds, ambient=0.6).image


def test_the_weights_are_small_enough_to_ship():
    sizes = [path.stat().st_size for path in MODEL.rglob("*") if path.is_file()]
    assert sum(sizes) <= 24e6
    assert max(sizes) <= 15e6
    assert (MODEL / "README.md").is_file()


def test_its_vocabulary_has_every_held_out_prompt_and_the_papers_negative_prompt():
    for composition in held_out():
        check_prompt(MODEL, composition.prompt)
    check_prompt(MODEL, ", ".join(NEGATIVE_WORDS))


def test_autoencoder_reconstructs_unseen_renders(prior):
    errors = []
    for composition in held_out()[::5]:
        image = true_views(composition)
        with torch.no_grad():
            errors.append((prior.decode(prior.encode(image)) - image).square().mean((1, 2, 3)))
    psnr = -10 * torch.log10(torch.cat(errors)).mean()
    assert psnr > 26


def test_samples_are_nearer_to_their_own_prompt_than_to_the_others(prior):
    """Samples of held-out prompts, compared in mean colour with true renders of all those prompts."""
    chosen = [parse_prompt(text) for text in ("an orange car", "a white mug", "a purple snowman", "a black torus")]
    context, empty = prior.embed([c.prompt for c in chosen]), prior.embed([""])
    rng = torch.Generator().manual_seed(0)
    z = ddim_sample(prior, context.joined([context] * 3), empty, guidance_scale=5.0, steps=15, rng=rng)
    samples = prior.decode(z)[:, :, 16:48, 16:48].flatten(2).mean(-1)
    truth = torch.stack([true_views(c)[:, :, 16:48, 16:48].flatten(2).mean(-1).mean(0) for c in chosen])
    nearest = torch.cdist(samples, truth).argmin(1)
    right = (nearest == torch.arange(4).repeat(4)).float().mean()
    assert right >= 0.75


def test_the_flow_shares_all_parts_but_its_unet_and_is_small():
    flow = fetch(locate("shapes-flow"))
    assert (flow.folder, flow.base) == (EMBEDDED_FLOW, MODEL)
    assert [path.parent.parent for path in flow.weights()] == [EMBEDDED_FLOW, MODEL, MODEL]
    sizes = [path.stat().st_size for path in EMBEDDED_FLOW.rglob("*") if path.is_file()]
    assert sum(sizes) <= 11e6 and (EMBEDDED_FLOW / "README.md").is_file()
    assert (EMBEDDED_FLOW / "vocabulary.json").read_bytes() == (MODEL / "vocabulary.json").read_bytes()


def test_samples_of_the_flow_have_the_colours_of_their_prompts():
    prior = load_prior(fetch(locate("shapes-flow")))
    assert isinstance(prior.schedule, RectifiedFlow)
    chosen = [parse_prompt(text) for text in ("an orange car", "a purple snowman", "a black torus")]
    context, empty = prior.embed([c.prompt for c in chosen]), prior.embed([""])
    rng = torch.Generator().manual_seed(0)
    z = ddim_sample(prior, context, empty, guidance_scale=5.0, steps=12, rng=rng)
    samples = prior.decode(z)[:, :, 16:48, 16:48].flatten(2).mean(-1)
    truth = torch.stack([true_views(c)[:, :, 16:48, 16:48].flatten(2).mean(-1).mean(0) for c in chosen])
    assert torch.equal(torch.cdist(samples, truth).argmin(1), torch.arange(3))


def distance_to_truth(views: torch.Tensor, composition: Composition) -> float:
    """Root mean square difference from true renders with the same cameras and background, slightly blurred."""
    blur = torch.nn.AvgPool2d(4)
    return float((blur(views) - blur(true_views(composition))).square().mean().sqrt())


def views_after(prompt: str, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The views of ``configs/nfsd.yaml`` before training and after its first ``steps`` steps, before gray."""
    config = compose("nfsd", [f"prompt={prompt}", "prior=shapes", "machine=cpu", "seed=0"])
    parts = build_parts(config)
    cameras = orbit(VIEWS, 64, elevation_deg=15)
    gray = torch.full((VIEWS, 3), 0.5)
    before = parts.generator.render_in_chunks(cameras, RenderOptions(gray)).image
    for step in range(steps):
        plan = plan_at(config.train, step / config.train.steps)
        for group in parts.optimizer.param_groups:
            group["lr"] = group["base_lr"] * plan.learning_rate_factor
        parts.generator.update(step, parts.rng)
        arguments = parts.generator, parts.prior, parts.bank, parts.distillation, parts.ranges
        loss = step_loss(*arguments, plan, parts.rng).loss
        parts.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parts.optimizer.step()
    return before, parts.generator.render_in_chunks(cameras, RenderOptions(gray)).image


def test_sixty_steps_come_nearer_to_the_truth_than_the_start_and_than_a_wrong_prompt():
    composition = parse_prompt(PROMPT)
    before, after = views_after(PROMPT, 60)
    _, wrong = views_after("a green tree", 60)
    start, right, other = (distance_to_truth(views, composition) for views in (before, after, wrong))
    # The start is all but empty: plain gray, which is hard to beat for a cap that has its colour and no spots yet. Two
    # seeds differ by 1 %.
    assert right < 0.95 * start
    assert right < 0.75 * other
