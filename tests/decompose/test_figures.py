"""The score decomposition: statistics by hand, figures with an analytic prior, the command."""

import json
import math
import shutil

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from analytic_prior import AnalyticPrior

from nfsd3d.cli import decompose
from nfsd3d.cli.main import main
from nfsd3d.decompose import figures, image_pairs, plots, study
from nfsd3d.decompose.observation import Observation, PairObservation, observe
from nfsd3d.evaluate.statistics import Estimate, area_under_curve, claim, correlation, estimate, estimate_difference
from nfsd3d.prior.files.locate import EMBEDDED
from nfsd3d.prior.schedule import VariancePreserving
from nfsd3d.shapes.world.grammar import parse_prompt

SIZE, TIMES = 4, (50, 300, 800)


# --- statistics ------------------------------------------------------------------------------------------------------


def test_correlation_is_pearsons_over_each_latent():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 3, 4, 4)) + 7, rng.normal(size=(5, 3, 4, 4))
    found = correlation(torch.from_numpy(a), torch.from_numpy(b))
    for k in range(2):
        for n in range(5):
            expected = np.corrcoef(a[k, n].ravel(), b[n].ravel())[0, 1]
            assert found[k, n] == pytest.approx(expected, abs=1e-12)
    assert correlation(torch.from_numpy(a), torch.from_numpy(3 - 2 * a))[0, 0] == pytest.approx(-1)


def test_area_under_curve_is_the_share_of_pairs_in_order():
    rng = torch.Generator().manual_seed(0)
    score = torch.randint(5, (6, 3, 4), generator=rng).double()  # with ties
    mask = torch.rand(6, 3, 4, generator=rng) < 0.4
    for found, values, inside in zip(area_under_curve(score, mask), score, mask, strict=True):
        more = values[inside][:, None] - values[~inside][None]
        assert found == pytest.approx(float((more > 0).double().mean() + (more == 0).double().mean() / 2))
    assert area_under_curve(mask.double(), mask).eq(1).all()
    assert area_under_curve(score, torch.ones_like(mask)).isnan().all()


def test_intervals_cover_the_true_mean_about_nineteen_times_in_twenty():
    values = torch.randn(400, 24, generator=torch.Generator().manual_seed(1)) + 3
    found = estimate(values)
    covered = sum(e.low < 3 < e.high for e in found) / len(found)
    assert 0.88 < covered < 0.98
    assert found[0].mean == pytest.approx(float(values[0].mean())) and found[0].count == 24


def test_values_that_are_not_numbers_are_left_out():
    (found,) = estimate(torch.tensor([[1.0, math.nan, 3.0]]))
    assert found.mean == 2 and found.count == 2
    (nothing,) = estimate(torch.tensor([[math.nan, math.nan]]))
    assert math.isnan(nothing.mean) and str(nothing) == "-"


def test_pairing_narrows_the_interval_of_a_difference():
    rng = torch.Generator().manual_seed(0)
    common = 10 * torch.randn(1, 30, generator=rng)
    first, second = common + 1 + 0.1 * torch.randn(1, 30, generator=rng), common
    (paired,) = estimate_difference(first, second, paired=True)
    (apart,) = estimate_difference(first, second, paired=False)
    assert paired.mean == pytest.approx(1, abs=0.1) and apart.mean == pytest.approx(paired.mean, abs=1e-5)
    assert paired.high - paired.low < 0.2 < 3 < apart.high - apart.low


@pytest.mark.parametrize(
    ("intervals", "verdict"),
    [
        ([(0.1, 0.3), (0.2, 0.4)], "holds"),
        ([(0.1, 0.3), (-0.2, 0.4)], "holds in part (t = 1)"),
        ([(-0.3, -0.1), (-0.2, 0.4)], "not decided"),
        ([(-0.3, -0.1), (-0.4, -0.2)], "does not hold"),
        ([(math.nan, math.nan), (0.2, 0.4)], "holds in part (t = 2)"),
    ],
)
def test_a_verdict_follows_from_the_intervals(intervals, verdict):
    values = [Estimate((low + high) / 2, low, high, 9) for low, high in intervals]
    assert claim("it is positive", "this", (1, 2), values, above=0.0).verdict == verdict


# --- figures with exact predictions ----------------------------------------------------------------------------------


def make_prior(stds=(0.3, 0.3, 0.3)):
    """Bright, dark and gray images as three Gaussians; the empty prompt means bright ones alone."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    means = torch.tensor([0.8, -0.8, 0.0], dtype=torch.float64)[:, None, None, None].expand(3, 3, SIZE, SIZE)
    weights = {"": [1, 0, 0], "bright": [1, 0, 0], "dark": [0, 1, 0], "gray": [0, 0, 1]}
    return AnalyticPrior(
        means,
        torch.tensor(stds, dtype=torch.float64),
        {prompt: torch.tensor(values, dtype=torch.float64) for prompt, values in weights.items()},
        VariancePreserving(torch.cumprod(1 - betas, dim=0)),
    )


def seen_by(prior, z, prompts, noises=3, seed=0):
    noise = torch.randn(noises, *z.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return observe(prior, z, noise, TIMES, {name: prior.embed([text]) for name, text in prompts.items()})


def images(count, mean=0.8, seed=5):
    rng = torch.Generator().manual_seed(seed)
    return mean + 0.3 * torch.randn(count, 3, SIZE, SIZE, generator=rng, dtype=torch.float64)


def shrinkage(prior):
    """[T,1,1,1,1,1] sigma / (alpha² s² + sigma²): what a Gaussian's score has of an offset, and alpha."""
    alpha, sigma = prior.schedule.alpha_sigma(torch.tensor(TIMES), images(1))
    return (sigma / (alpha**2 * 0.3**2 + sigma**2))[:, None, None], alpha[:, None, None]


def pair_of(prior, clean, distorted, mask, prompts=("neg", "random")):
    texts = {"uncond": "", **dict(zip(prompts, ("dark", "gray"), strict=True))}
    return PairObservation(seen_by(prior, clean, {"uncond": ""}), seen_by(prior, distorted, texts), mask, shared=True)


def test_an_observation_is_the_prior_on_noised_latents():
    prior, z = make_prior(), images(70)
    seen = seen_by(prior, z, {"cond": "dark", "uncond": ""}, noises=2)
    t = torch.full((70,), TIMES[1])
    direct = prior.predict_eps(prior.schedule.add_noise(z, seen.noise[1], t), t, prior.embed(["dark"] * 70))
    torch.testing.assert_close(seen.eps["cond"][1, 1], direct)
    assert seen.eps["uncond"].shape == (3, 2, 70, 3, SIZE, SIZE)


def test_delta_c_of_two_gaussians_is_the_distance_of_their_means():
    prior = make_prior()
    seen = seen_by(prior, images(6), {"cond": "dark", "uncond": ""})
    gain, alpha = shrinkage(prior)
    torch.testing.assert_close(seen.delta_c, (gain * alpha * 1.6).expand_as(seen.delta_c))
    # The step along minus delta_C is darker: ε points away from the data.
    assert (seen.z - seen.step * seen.delta_c < seen.z).all()
    figure = figures.condition_figure(seen, None, {7.5: torch.ones(3, 6)})
    verdicts = {item.statement: item.verdict for item in figure.claims}
    assert verdicts["a step along −δ_C shows more of the prompt"] == "holds"


def test_the_condition_figure_detects_a_delta_c_of_pure_noise():
    prior, z = make_prior(), images(6)
    plain = seen_by(prior, z, {"uncond": ""})
    noisy = {"uncond": plain.eps["uncond"], "cond": plain.eps["uncond"] + plain.noise}
    seen = Observation(plain.schedule, TIMES, plain.z, plain.noise, noisy)
    claims = figures.condition_figure(seen, None, {}).claims
    assert [item.verdict for item in claims] == ["does not hold"]


def patch_pair(count=8):
    mask = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
    mask[:, 1:3, :2] = True
    clean = images(count)
    return clean, clean - 1.5 * mask[:, None], mask


def test_delta_d_of_a_gaussian_is_the_shrunk_distortion():
    prior = make_prior()
    clean, distorted, mask = patch_pair()
    pair = pair_of(prior, clean, distorted, mask)
    gain, alpha = shrinkage(prior)
    torch.testing.assert_close(pair.delta_d, (gain * alpha * (distorted - clean)).expand_as(pair.delta_d))
    # What is left of the distance is alpha² s² / (alpha² s² + sigma²).
    sigma2 = 1 - alpha**2
    left = (alpha**2 * 0.09 / (alpha**2 * 0.09 + sigma2))[:, 0, :, 0, 0, 0].expand(3, 8)
    torch.testing.assert_close(pair.distance_after(pair.delta_d), left)


def test_the_domain_figure_distinguishes_distorted_from_clean_images():
    prior = make_prior()
    clean, distorted, mask = patch_pair()
    pair = pair_of(prior, clean, distorted, mask)
    elsewhere = PairObservation(pair.clean, pair.distorted, ~mask, shared=True)
    figure = figures.domain_figure({"patch": pair, "elsewhere": elsewhere, "same": pair}, "same")
    verdicts = {(item.statement, item.of): item.verdict for item in figure.claims}
    assert verdicts["‖δ_D‖ is large where the distortion is", "patch"] == "holds"
    assert verdicts["‖δ_D‖ is large where the distortion is", "elsewhere"] == "does not hold"
    assert verdicts["x_OOD − (σ/α)δ_D is nearer to x_ID than x_OOD", "patch"] == "holds"
    assert verdicts["and more so than between two in-domain pictures", "patch"] == "does not hold"  # exactly as much
    assert not any(of == "same" for _, of in verdicts)


def test_the_negative_figure_prefers_the_prompt_that_names_the_distortion():
    prior = make_prior()
    clean, _, mask = patch_pair()
    # Darker by a different amount everywhere: "dark" is right about the sign, and no prompt about the pattern.
    pattern = torch.rand(clean.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pair = pair_of(prior, clean, clean - pattern, mask)
    true = {**pair.distorted.eps, "neg": pair.distorted.eps["uncond"] - pair.delta_d}
    distorted = Observation(prior.schedule, TIMES, pair.distorted.z, pair.distorted.noise, true)
    figure = figures.negative_figure({"dark": PairObservation(pair.clean, distorted, mask, shared=True)})
    title = "correlation of ε(∅) − ε(neg) with the pair's δ_D"
    assert [e.mean for e in figure.tables[title]["dark"]] == pytest.approx([1, 1, 1])
    verdicts = {item.statement: item for item in figure.claims}
    assert verdicts["ε(∅) − ε(neg) points along δ_D (t ≥ 200)"].verdict == "holds"
    assert verdicts["a step along −(ε(∅) − ε(neg)) leads towards x_ID"].verdict == "holds"
    assert set(verdicts["ε(∅) is mostly δ_D (t < 200)"].answers) == {50}
    assert set(verdicts["and ε(∅) − ε(neg) is nearer (t ≥ 200)"].answers) == {300, 800}


def test_the_residual_splits_into_mean_and_variance():
    prior, z = make_prior(), images(6)
    seen = seen_by(prior, z, {"uncond": "", "cond": "dark"}, noises=200)
    figure = figures.residual_figure({"bright": seen})
    gain, alpha = shrinkage(prior)
    sigma = (1 - alpha**2).sqrt()
    # eps(0) - eps = gain (alpha (z - mu) + sigma eps) - eps
    mean = (gain * alpha * (z - 0.8)).square().mean((-3, -2, -1))[:, 0].sqrt()
    variance = (1 - gain * sigma).square()[:, 0, :, 0, 0, 0].expand(3, 6)
    found = figure.tables["size of its mean over noises"]["bright"]
    assert [e.mean for e in found] == pytest.approx(mean.mean(1).tolist(), rel=0.03)
    shares = figure.tables["share of its variance over noises in its power"]["bright"]
    assert [e.mean for e in shares] == pytest.approx((variance / (variance + mean**2)).mean(1).tolist(), rel=0.05)
    ratios = [figure.tables[f"size of the residual as a share of {s} δ_C's"]["bright"][0].mean for s in ("7.5", "100")]
    assert ratios[0] / ratios[1] == pytest.approx(100 / 7.5)


def test_the_residual_cancels_only_between_equal_images():
    prior, z = make_prior(), images(6)
    source = seen_by(prior, z, {"cond": "bright", "uncond": ""})
    same = seen_by(prior, z, {"cond": "dark", "uncond": ""})
    other = seen_by(prior, images(6, mean=-0.8, seed=9), {"cond": "dark", "uncond": ""})
    figure = figures.dds_figure(source, {"start": same, "end": other})
    title = "size of the difference of the residuals, as a share of one residual's"
    assert [e.mean for e in figure.tables[title]["start"]] == [0, 0, 0]
    verdicts = {(item.statement, item.of): item.verdict for item in figure.claims}
    assert verdicts["the residual cancels, all but a tenth", "start"] == "holds"
    assert verdicts["the residual cancels, more than half of it", "end"] == "does not hold"


def test_the_vsd_figure_measures_both_distances():
    prior = make_prior()
    pair = pair_of(prior, *patch_pair())
    uncond, noise = pair.distorted.eps["uncond"], pair.clean.noise.expand_as(pair.delta_n)
    figure = figures.vsd_figure(pair, {0: uncond, 5: pair.delta_n})
    assert {item.statement: item.verdict for item in figure.claims}["ε_LoRA is nearer to δ_N than to ε"] == "holds"
    title = "correlation of ε(∅) − ε_LoRA, VSD's gradient without s δ_C, with the pair's δ_D"
    assert [e.mean for e in figure.tables[title]["after 5 steps"]] == pytest.approx([1, 1, 1])
    assert [e.mean for e in figure.tables["distance of ε_LoRA from δ_N (root mean square)"]["after 5 steps"]] == [0] * 3
    overfitted = figures.vsd_figure(pair, {0: uncond, 5: noise}).claims
    assert {item.statement: item.verdict for item in overfitted}["ε_LoRA is nearer to δ_N than to ε"] == "does not hold"


# --- images and pairs ------------------------------------------------------------------------------------------------


def test_true_images_have_masks_and_recoloured_targets():
    subjects = image_pairs.world_subjects(18, torch.Generator().manual_seed(0))
    assert subjects.images.shape == (18, 3, 64, 64) and len({c.object for c in subjects.compositions}) == 16
    for i, (shown, wanted) in enumerate(zip(subjects.compositions, subjects.target_compositions, strict=True)):
        assert parse_prompt(subjects.targets[i]) == wanted
        assert shown.object == wanted.object and shown.pattern == wanted.pattern
        assert not {shown.color, shown.second} - {""} & {wanted.color, wanted.second}
    changed = (subjects.target_images - subjects.images).abs().amax(1, keepdim=True) > 1e-3
    assert not (changed & (subjects.masks == 0)).any() and changed.any((1, 2, 3)).all()


def test_masks_of_composites_are_exact():
    rng = torch.Generator().manual_seed(0)
    subjects = image_pairs.world_subjects(4, rng)
    for pairs in (image_pairs.degraded_pairs(subjects, rng, patch=True), image_pairs.floater_pairs(subjects, rng)):
        changed = (pairs.distorted - pairs.clean).abs().amax(1, keepdim=True)
        assert changed.amax((1, 2, 3)).min() > 0.02
        if pairs.masks.unique().numel() > 2:  # soft: nothing outside
            assert changed[pairs.masks == 0].max() == 0
        latent = image_pairs.on_latents(pairs.masks, 16, 16)
        assert latent.any((1, 2)).all() and not latent.all((1, 2)).any()
    saturated = image_pairs.saturated_pairs(subjects, rng)
    torch.testing.assert_close(saturated.masks, image_pairs.visible_change(subjects.images, saturated.distorted))
    spread = [x.amax(1) - x.amin(1) for x in (saturated.distorted, saturated.clean)]
    assert spread[0].mean() > 1.2 * spread[1].mean()


def test_maps_show_where_and_which_way():
    direction = torch.zeros(4, 2, 2)
    direction[0, 0, 1] = -3.0
    assert plots.heat(direction)[:, 0, 1].eq(1).all() and plots.heat(direction).sum() == 3
    colours = plots.colours(direction, scale=1.0)
    assert colours[0, 0, 1] == 0 and colours[0, 1, 1] == 0.5


# --- the command -----------------------------------------------------------------------------------------------------


def run(tmp_path, *arguments):
    path = tmp_path / "numbers.json"
    assert main(["decompose", "--out", str(tmp_path), "--json", str(path), "--noises", "2", *arguments]) == 0
    return json.loads(path.read_text())


def test_the_command_measures_the_condition_direction_of_the_shipped_prior(tmp_path, capsys):
    numbers = run(tmp_path, "--figure", "condition", "--images", "3", "--timesteps", "600", "300")
    printed = capsys.readouterr().out
    figure = numbers["figures"]["condition"]
    auc = figure["tables"]["area under the curve against the region that the words speak of"][
        "‖δ_C‖ against the object"
    ]
    assert [entry["t"] for entry in auc] == [300, 600] and all(entry["mean"] > 0.7 for entry in auc)
    noise = figure["tables"]["correlation with the added noise ε"]
    assert all(abs(entry["mean"]) < 0.3 for entry in noise["δ_C"]) and noise["ε(∅)"][1]["mean"] > 0.9
    assert "- condition: δ_C is uncorrelated with the added noise. **" in printed
    assert imageio.imread(tmp_path / "condition.png").shape == (16 + 3 * 128, 7 * 128, 3)


def test_every_figure_works_on_a_file_with_any_model(tmp_path, monkeypatch):
    """Without ground truth there are no masks of objects, no classifier and no half-trained scenes."""
    monkeypatch.setattr(study, "LORA_STAGES", (0, 15))
    picture = (np.random.default_rng(0).random((40, 50, 3)) * 255).astype(np.uint8)
    imageio.imwrite(tmp_path / "x.png", picture)
    asked = ["--image", str(tmp_path / "x.png"), "--prompt", "a red house", "--edit", "a blue house"]
    numbers = run(tmp_path, "--prior", str(EMBEDDED), *asked, "--images", "2", "--timesteps", "100", "300")
    assert list(numbers["figures"]) == ["condition", "domain", "negative", "residual", "dds", "vsd"]
    assert all((tmp_path / f"{name}.png").exists() for name in numbers["figures"])
    families = numbers["figures"]["domain"]["tables"]["area under the curve of ‖δ_D‖ against the distortion"]
    assert set(families) == {"captioned (patch)", "captioned (whole picture)", "floaters", "over-saturated"}
    assert families["floaters"][1]["mean"] > 0.8
    stages = numbers["figures"]["vsd"]["tables"]["distance of ε_LoRA from ε"]
    assert stages["after 15 steps"][0]["mean"] < stages["after 0 steps"][0]["mean"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prior", "/no/such/model"], "/no/such/model"),
        (["--image", "x.png"], "needs --prompt"),
        (["--prompt", "a red house"], "about --image"),
        (["--image", "no.png", "--prompt", "a red house"], "--image no.png: no such file"),
        (["--image", "no.png", "--prompt", "a red house", "--figure", "dds"], "--edit"),
        (["--half-trained", "no/such/run"], "no/such/run"),
        (["--timesteps", "1000", "--figure", "condition"], "last timestep is 999"),
    ],
)
def test_bad_arguments_exit_2_with_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["decompose", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "change", "message"),
    [
        (
            [],
            lambda model: (model / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"x"),
            "cannot be read as saf",
        ),
        ([], lambda model: (model / "scheduler/scheduler_config.json").write_text("[]"), "not a JSON object"),
        (["--timesteps", "1000"], lambda model: None, "--timesteps 1000: the model's last timestep is 999"),
        (
            ["--prompt", "red " * 13],
            lambda model: None,
            "--prompt: is 13 tokens long and the prior reads 12: shorten it",
        ),
        (["--edit", "red " * 13], lambda model: None, "--edit: is 13 tokens long and the prior reads 12: shorten it"),
    ],
)
def test_a_model_is_checked_before_it_is_loaded(
    arguments, change, message, model_folder, tmp_path, monkeypatch, capsys
):
    model = shutil.copytree(model_folder("kl"), tmp_path / "model")
    change(model)
    imageio.imwrite(tmp_path / "x.png", np.zeros((8, 8, 3), np.uint8))
    monkeypatch.setattr(decompose, "_prepare", lambda *arguments: pytest.fail("the model was loaded"))
    asked = ["--prior", str(model), "--image", str(tmp_path / "x.png"), "--prompt", "a red cube", *arguments]
    assert main(["decompose", "--out", str(tmp_path / "out"), *asked]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_claim_without_timesteps_is_not_made():
    figure = figures.Figure((300,))
    figure.state("it is so", "this", [Estimate(1, 1, 1, 1)], above=0, where=lambda t: t < 200)
    assert figure.claims == []
