import re
from dataclasses import replace

import pytest
import torch

from nfsd3d.context import Context
from nfsd3d.distill.gradient import perp_neg, predict_noise, threshold_step
from nfsd3d.distill.methods import METHODS, Method, csd, dds, from_threshold, nfsd, sds, vsd
from nfsd3d.distill.types import PREDICTIONS, Predictions
from nfsd3d.guidance import guided

# The context of a prompt is a constant for its name, so that predictions can be traced to their prompts.
CONTEXTS = {
    "cond": 1.0,
    "uncond": 2.0,
    "neg": 3.0,
    "plain": 4.0,
    "better": 5.0,
    "worse": 6.0,
    "source_cond": 7.0,
    "cond_against_0": 8.0,
    "cond_against_1": 9.0,
    "source_cond_against_0": 8.5,
    "source_cond_against_1": 9.5,
}
SHAPE = (4, 3, 3)


class Denoiser:
    """eps = context * z_t + t * z_t^2; remembers its calls."""

    def __init__(self):
        self.calls = []

    def predict_eps(self, z_t, t, context):
        of_prompt = context.tensors["embeddings"]
        self.calls.append((t.tolist(), of_prompt[:, 0, 0].tolist()))
        return formula(z_t, t, of_prompt[:, :1, :1, None])


def formula(z_t, t, context):
    return context * z_t + t[:, None, None, None] * z_t**2


def contexts(count):
    shape = (count, 2, 3)
    return {name: Context.of(torch.full(shape, value, dtype=torch.float64)) for name, value in CONTEXTS.items()}


def latents(count, seed=0):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predictions(t, threshold=200, seed=0):
    t = torch.tensor(t)
    noise, *made = (latents(len(t), seed + i) for i in range(len(PREDICTIONS) + 1))
    return Predictions(noise=noise, **dict(zip(PREDICTIONS, made, strict=True)), t=t, threshold=threshold)


def predicted(method, z_t, times, denoiser=None, noise=None, **options):
    """The predictions of a method with all possible inputs."""
    later = 2 * z_t, torch.tensor(times) + 10
    options = {"source": z_t.flip(0), "lora": Denoiser(), "later": later, **options}
    return predict_noise(
        denoiser or Denoiser(),
        z_t,
        torch.tensor(times),
        contexts(len(times)),
        method,
        noise=z_t if noise is None else noise,
        threshold=options.pop("threshold", 200),
        **options,
    )


def test_sds_is_the_guided_prediction_minus_the_noise():
    p = predictions([10, 500])
    torch.testing.assert_close(sds(p, 100.0), p.uncond + 100 * (p.cond - p.uncond) - p.noise)
    torch.testing.assert_close(sds(p, 1.0), p.cond - p.noise)


def test_csd_is_the_condition_direction():
    p = predictions([10, 500])
    torch.testing.assert_close(csd(p, 7.5), 7.5 * (p.cond - p.uncond))


@pytest.mark.parametrize(("training_steps", "times"), [(1000, [0, 199, 200, 201, 999]), (50, [0, 9, 10, 11, 49])])
def test_nfsd_is_the_papers_formula_per_sample(training_steps, times):
    p = predictions(times, threshold=threshold_step(0.2, training_steps))
    direction = nfsd(p, 7.5)
    for row, t in enumerate(times):
        in_domain = p.uncond[row] if t < training_steps / 5 else p.uncond[row] - p.neg[row]
        expected = in_domain + 7.5 * (p.cond[row] - p.uncond[row])
        torch.testing.assert_close(direction[row], expected, rtol=1e-14, atol=1e-14)


def test_nfsd_above_the_threshold_is_csd_with_the_negative_prompt():
    # CSD with weights (w1, w2) is w1 eps_y + (w2 - w1) eps_0 - w2 eps_neg (2310.19415); here (s, 1).
    p, s = predictions([200, 640, 999]), 7.5
    torch.testing.assert_close(nfsd(p, s), s * p.cond + (1 - s) * p.uncond - p.neg)
    torch.testing.assert_close(nfsd(p, s), csd(p, s) + p.uncond - p.neg)
    everywhere = replace(predictions([0, 3, 150]), threshold=0)
    torch.testing.assert_close(nfsd(everywhere, s), csd(everywhere, s) + everywhere.uncond - everywhere.neg)


def test_nfsd_coefficients_sum_to_zero_above_the_threshold_and_to_one_below():
    p = predictions([199, 200])
    same = replace(p, uncond=p.cond, neg=p.cond)
    direction = nfsd(same, 7.5)
    torch.testing.assert_close(direction[0], p.cond[0])
    torch.testing.assert_close(direction[1], torch.zeros_like(p.cond[1]), rtol=0, atol=1e-14)


def test_vsd_is_the_guided_prediction_minus_the_lora_networks():
    p = predictions([10, 500])
    torch.testing.assert_close(vsd(p, 7.5), 7.5 * p.cond - 6.5 * p.uncond - p.lora)
    torch.testing.assert_close(vsd(p, 1.0), p.cond - p.lora)


def test_vsd_with_an_untrained_network_on_the_same_prompt_is_the_condition_direction():
    p = predictions([10, 500])
    torch.testing.assert_close(vsd(replace(p, lora=p.cond), 7.5), 6.5 * (p.cond - p.uncond))


def test_vsd_with_a_network_that_predicts_the_true_noise_is_sds():
    p = predictions([10, 500])
    assert torch.equal(vsd(replace(p, lora=p.noise), 7.5), sds(p, 7.5))


def test_dds_is_the_difference_of_two_guided_predictions():
    p = predictions([10, 500])
    expected = 7.5 * (p.cond - p.source_cond) - 6.5 * (p.uncond - p.source_uncond)
    torch.testing.assert_close(dds(p, 7.5), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [None, torch.tensor([[-1.5, -0.3], [-0.7, 0.0]])])
def test_dds_of_identical_inputs_is_exactly_zero(dtype, weights):
    z_t, t = latents(2).to(dtype), torch.tensor([30, 700])
    given = {name: Context.of(context.tensors["embeddings"].to(dtype)) for name, context in contexts(2).items()}
    same = {name: given[name.removeprefix("source_")] for name in given}
    p = predict_noise(
        Denoiser(), z_t, t, same, METHODS["dds"], noise=z_t, threshold=200, source=z_t, view_weights=weights
    )
    assert torch.equal(dds(p, 7.5), torch.zeros_like(z_t))
    assert not torch.equal(p.cond, p.uncond)


def test_bridge_goes_from_sds_to_the_contrast_of_two_prompts():
    bridge = METHODS["bridge"]
    assert bridge.at(0.0) is bridge.at(0.499) is bridge and bridge.at(0.5) is bridge.at(1.0) is bridge.then
    z_t, times, noise = latents(2), [10, 500], latents(2, 1)
    t = torch.tensor(times)
    first = bridge.at(0.2).function(predicted(bridge.at(0.2), z_t, times, noise=noise), 100.0)
    second = bridge.at(0.7).function(predicted(bridge.at(0.7), z_t, times, noise=noise), 35.0)
    cond, uncond, better, worse = (formula(z_t, t, CONTEXTS[name]) for name in ("cond", "uncond", "better", "worse"))
    torch.testing.assert_close(first, uncond + 100 * (cond - uncond) - noise)
    torch.testing.assert_close(second, 35 * (better - worse))


# Each method's direction, from eps(latent, prompt), the noise, and whether a batch entry is at or above the threshold.
EXPECTED = {
    "sds": lambda eps, s, noise, late: eps("cond") * s - eps("uncond") * (s - 1) - noise,
    "ism": lambda eps, s, noise, late: eps("cond") * s - eps("uncond") * (s - 1) - noise,
    "sdi": lambda eps, s, noise, late: eps("cond") * s - eps("uncond") * (s - 1) - noise,
    "bridge": lambda eps, s, noise, late: eps("cond") * s - eps("uncond") * (s - 1) - noise,
    "csd": lambda eps, s, noise, late: eps("cond") * s - eps("uncond") * s,
    "nfsd": lambda eps, s, noise, late: eps("cond") * s - eps("uncond") * (s - 1) - eps("neg") * late,
    "vsd": lambda eps, s, noise, late: eps("cond") * s - eps("uncond") * (s - 1) - eps("plain"),
    "dds": lambda eps, s, noise, late: (
        (eps("cond") - eps("source_cond", True)) * s - (eps("uncond") - eps("uncond", True)) * (s - 1)
    ),
    "asd": lambda eps, s, noise, late: eps("cond") * s - eps("uncond") * (s - 1) - eps("cond", later=True),
}
EXPECTED |= dict.fromkeys(("rfds", "rfds_rev", "ucm"), EXPECTED["sds"])
EXPECTED["dvrf"] = lambda eps, s, noise, late: EXPECTED["dds"](eps, s, noise, late) - 3 * noise


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("training_steps", "times"), [(1000, [0, 999, 199, 200, 201, 640]), (50, [0, 9, 10, 49])])
@pytest.mark.parametrize("s", [0.0, 1.0, 7.5, 100.0])
def test_every_methods_direction_by_hand(name, training_steps, times, s):
    threshold = threshold_step(0.2, training_steps)
    z_t, source, noise, t = latents(len(times)), latents(len(times), 1), latents(len(times), 2), torch.tensor(times)
    p = predicted(METHODS[name], z_t, times, noise=noise, source=source, threshold=threshold, offset=3 * noise)

    def eps(prompt, of_source=False, later=False):
        if later:
            return formula(2 * z_t, t + 10, CONTEXTS[prompt])
        return formula(source if of_source else z_t, t, CONTEXTS[prompt])

    late = (t >= training_steps / 5).double()[:, None, None, None]
    expected = EXPECTED[name](eps, s, noise, late)
    torch.testing.assert_close(METHODS[name].function(p, s), expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("weights", [None, torch.tensor([[-1.5, -0.3, 0.0, -2.0], [-0.7, 0.0, 0.0, -1.0]])])
def test_methods_are_equivariant_under_permutation_of_the_batch(name, weights):
    method, z_t, source, noise = METHODS[name], latents(4), latents(4, 1), latents(4, 2)
    times, order = torch.tensor([5, 150, 200, 700]), torch.tensor([2, 0, 3, 1])

    def direction(rows):
        given = None if weights is None else weights[:, rows]
        p = predicted(
            method, z_t[rows], times[rows].tolist(), noise=noise[rows], source=source[rows], view_weights=given
        )
        return method.function(p, 3.0)

    torch.testing.assert_close(direction(order), direction(torch.arange(4))[order], rtol=1e-13, atol=1e-10)


# Batch entries for four samples, two of them below NFSD's threshold.
COSTS = {"sds": 8, "csd": 8, "nfsd": 10, "vsd": 12, "dds": 16, "ism": 8, "sdi": 8, "bridge": 8}
COSTS |= {"asd": 12, "rfds": 8, "rfds_rev": 8, "ucm": 8, "dvrf": 16}


@pytest.mark.parametrize("name", METHODS)
def test_one_call_of_each_network_evaluates_exactly_the_batch_entries_that_are_needed(name):
    teacher, second, times = Denoiser(), Denoiser(), [10, 199, 200, 900]
    z_t, noise = latents(4), latents(4, 1)
    p = predicted(METHODS[name], z_t, times, teacher, noise=noise, lora=second)
    assert len(teacher.calls) == 1 and len(second.calls) == (name == "vsd")
    assert sum(len(called) for called, _ in teacher.calls + second.calls) == COSTS[name]
    called_times, called_contexts = teacher.calls[0]
    negative = [t for t, context in zip(called_times, called_contexts, strict=True) if context == CONTEXTS["neg"]]
    assert negative == ([200, 900] if name == "nfsd" else [])
    if name == "vsd":
        assert second.calls == [(times, [CONTEXTS["plain"]] * 4)]
    assert torch.equal(p.noise, noise) and p.t.tolist() == times and p.threshold == 200


@pytest.mark.parametrize(("times", "rows"), [([10, 199], 4), ([200, 900], 6)])
def test_below_the_threshold_nfsd_saves_the_negative_prompt(times, rows):
    denoiser = Denoiser()
    predicted(METHODS["nfsd"], latents(2), times, denoiser)
    assert len(denoiser.calls[0][0]) == rows


@pytest.mark.parametrize("training_steps", [1000, 50])
def test_with_the_threshold_1_nfsd_is_sds_without_its_noise(training_steps):
    times, denoiser = [0, training_steps // 2, training_steps - 1], Denoiser()
    at_all = threshold_step(1.0, training_steps)
    p = predicted(METHODS["nfsd"], latents(3), times, denoiser, noise=latents(3, seed=9), threshold=at_all)
    torch.testing.assert_close(nfsd(p, 7.5), sds(p, 7.5) + p.noise)
    assert len(denoiser.calls[0][0]) == 6  # two predictions of each of the three


@pytest.mark.parametrize("name", METHODS)
def test_a_method_reads_the_predictions_it_lists_and_no_others(name):
    method = METHODS[name]
    p = predicted(method, latents(4), [10, 900, 199, 200])
    for prediction in PREDICTIONS:
        listed = prediction in method.predictions
        assert getattr(p, prediction).isnan().all() == (not listed)
        if listed:
            changed = replace(p, **{prediction: getattr(p, prediction) + 1})
            assert not torch.equal(method.function(changed, 3.0), method.function(p, 3.0)), prediction
    assert method.function(p, 3.0).isfinite().all()


def test_predictions_carry_no_gradient():
    p = predicted(METHODS["nfsd"], latents(2).requires_grad_(), [1, 500])
    assert not any(getattr(p, prediction).requires_grad for prediction in ("cond", "uncond", "neg"))


def test_a_method_is_a_function_and_a_row():
    def negative_only(p, s):
        return guided(p.uncond, p.neg, -s)

    method = Method(negative_only, predictions=("uncond", "neg"), active={"uncond": from_threshold})
    denoiser, z_t, t = Denoiser(), latents(3), torch.tensor([1, 300, 50])
    p = predict_noise(denoiser, z_t, t, contexts(3), method, noise=z_t, threshold=100)
    assert len(denoiser.calls[0][0]) == 4
    uncond = torch.zeros_like(z_t)
    uncond[1] = formula(z_t, t, 2.0)[1]
    torch.testing.assert_close(method.function(p, 2.0), uncond - 2 * (formula(z_t, t, 3.0) - uncond))


def test_a_missing_context_is_an_error():
    given = {name: context for name, context in contexts(1).items() if name != "neg"}
    with pytest.raises(KeyError, match="neg"):
        predict_noise(
            Denoiser(), latents(1), torch.tensor([500]), given, METHODS["nfsd"], noise=latents(1), threshold=200
        )


@pytest.mark.parametrize(("name", "missing"), [("dds", "source"), ("vsd", "lora")])
def test_a_missing_source_or_lora_network_is_an_error(name, missing):
    with pytest.raises(ValueError, match=f"needs a {missing}, which was not given"):
        predicted(METHODS[name], latents(1), [500], **{missing: None})


def test_methods_declare_their_requirements():
    assert {name for name, method in METHODS.items() if method.needs_source} == {"dds", "dvrf"}
    assert {name for name, method in METHODS.items() if method.needs_lora} == {"vsd"}
    assert METHODS["dds"].all_prompts == {"cond", "uncond", "source_cond"}
    assert METHODS["bridge"].all_prompts == {"cond", "uncond", "better", "worse"}


def test_perp_neg_by_hand():
    delta_c, first, second = latents(2), latents(2, 1), latents(2, 2)
    weights = torch.tensor([[-1.5, -0.3], [-0.7, 0.0]], dtype=torch.float64)
    found = perp_neg(delta_c, [first, second], weights)
    for row in range(2):
        wanted, expected = delta_c[row].flatten(), delta_c[row].flatten().clone()
        for delta, weight in zip((first, second), weights[:, row], strict=True):
            unwanted = delta[row].flatten()
            perpendicular = unwanted - (unwanted @ wanted) / (wanted @ wanted) * wanted
            assert abs(perpendicular @ wanted) < 1e-12
            expected += weight * perpendicular
        torch.testing.assert_close(found[row].flatten(), expected)
    # What is moved away from changes nothing along the wanted direction.
    torch.testing.assert_close((found * delta_c).sum((1, 2, 3)), delta_c.square().sum((1, 2, 3)))


def test_perp_neg_does_not_change_parallel_or_zero_directions():
    delta_c, weights = latents(2), torch.tensor([[-1.5, -0.3]])
    torch.testing.assert_close(perp_neg(delta_c, [3 * delta_c], weights), delta_c)
    assert torch.equal(perp_neg(delta_c, [latents(2, 1)], torch.zeros(1, 2)), delta_c)
    nothing = torch.zeros_like(delta_c)
    torch.testing.assert_close(perp_neg(nothing, [latents(2, 1)], weights), latents(2, 1) * weights.view(2, 1, 1, 1))


@pytest.mark.parametrize("name", METHODS)
def test_perp_neg_replaces_the_condition_direction_in_every_method_and_costs_two_more(name):
    method, times, z_t, noise, source = METHODS[name], [10, 900], latents(2), latents(2, 1), latents(2, 2)
    t, weights = torch.tensor(times), torch.tensor([[-1.5, -0.3], [-0.7, -0.2]], dtype=torch.float64)
    teacher = Denoiser()
    plain = predicted(method, z_t, times, noise=noise, source=source)
    p = predicted(method, z_t, times, teacher, noise=noise, source=source, view_weights=weights)

    def bent(latent, cond, against):
        eps, uncond = formula(latent, t, CONTEXTS[cond]), formula(latent, t, CONTEXTS["uncond"])
        return perp_neg(eps - uncond, [formula(latent, t, CONTEXTS[name]) - uncond for name in against], weights)

    expected = {"cond": plain.uncond + bent(z_t, "cond", ("cond_against_0", "cond_against_1"))}
    if name == "dds":
        against = ("source_cond_against_0", "source_cond_against_1")
        expected["source_cond"] = plain.source_uncond + bent(source, "source_cond", against)
    torch.testing.assert_close(method.function(p, 7.5), method.function(replace(plain, **expected), 7.5))
    for prediction in set(PREDICTIONS) - expected.keys():
        torch.testing.assert_close(getattr(p, prediction), getattr(plain, prediction), equal_nan=True)
    entries = 2 * len(method.of_prior) - (name == "nfsd")  # one of the two samples is below NFSD's threshold
    assert len(teacher.calls[0][0]) == entries + (8 if method.needs_source else 4)  # it has two condition directions


def test_perp_neg_costs_nothing_where_its_weights_are_zero():
    denoiser, weights = Denoiser(), torch.tensor([[-1.5, 0.0, 0.0], [-0.7, -0.1, 0.0]])
    p = predicted(METHODS["sds"], latents(3), [10, 200, 900], denoiser, view_weights=weights)
    assert len(denoiser.calls[0][0]) == 6 + 3
    torch.testing.assert_close(p.cond[2], predicted(METHODS["sds"], latents(3), [10, 200, 900]).cond[2])


def test_perp_neg_does_not_change_bridges_contrast():
    denoiser, weights = Denoiser(), torch.tensor([[-1.5, -1.0], [-0.7, -0.1]])
    p = predicted(METHODS["bridge"].then, latents(2), [10, 900], denoiser, view_weights=weights)
    assert len(denoiser.calls[0][0]) == 4
    torch.testing.assert_close(p.cond, formula(latents(2), torch.tensor([10, 900]), CONTEXTS["better"]))


@pytest.mark.parametrize(
    ("name", "views", "perp_neg", "sizes"),
    [
        ("sds", 1, False, {2}),
        ("nfsd", 1, False, {2, 3}),  # the negative prompt's prediction only from the threshold on
        ("nfsd", 2, False, {4, 5, 6}),
        ("nfsd", 1, True, {2, 3, 4, 5}),
        ("vsd", 2, False, {4}),  # the LoRA network's prediction is not the prior's
        ("dds", 1, True, {4, 5, 6, 7, 8}),
        ("ism", 3, False, {1, 2, 3, 6}),  # and the inversion of any number of latents, one entry each
        ("sdi", 2, False, {2, 4}),  # two entries each
        ("rfds_rev", 2, False, {1, 2, 4}),
        ("ucm", 2, False, {1, 2, 4}),
        ("asd", 2, False, {6}),
        ("bridge", 2, False, {4}),
        ("bridge", 1, True, {2, 3, 4}),  # the second half's prompts have no directions of views
    ],
)
def test_the_batch_sizes_are_those_that_steps_can_have(name, views, perp_neg, sizes):
    assert METHODS[name].batch_sizes(views, perp_neg=perp_neg) == sizes


def test_a_method_whose_predictions_are_all_restricted_has_no_empty_batch():
    late = Method(csd, ("cond", "uncond"), active={"cond": from_threshold, "uncond": from_threshold})
    assert late.batch_sizes(1, perp_neg=False) == {1, 2}
    twice = Method(sds, ("cond", "uncond"), then=METHODS["nfsd"])
    assert twice.batch_sizes(1, perp_neg=False) == {2, 3} and twice.batch_sizes(1, perp_neg=True) == {2, 3, 4, 5}
    assert late.at(0.5) is late


@pytest.mark.parametrize(
    ("name", "times", "nfe"),
    [
        ("nfsd", [199], 2.0),
        ("nfsd", [200], 3.0),
        ("nfsd", [10, 199, 200, 900], 2.5),
        ("sds", [10, 900], 2.0),
        ("vsd", [10, 900, 950], 4.0),  # three predictions, and the LoRA network's training step
        ("ism", [50, 251], 2.0 + 2.0),  # one evaluation at 0; at 201 two strides and one
        ("sdi", [100, 101], 2.0 + 3.0),  # one step of the grid, or two; two evaluations each
        ("asd", [100, 900], 3.0),
        ("rfds", [100, 900], 2.0),
        ("rfds_rev", [100, 900], 1.0 + 2.0),
        ("ucm", [100, 900], 3.0 + 2.0),
        ("dvrf", [100, 900], 4.0),
    ],
)
def test_the_expected_nfe_are_averaged_over_the_timesteps(name, times, nfe):
    assert METHODS[name].nfe(torch.tensor(times), 1000, 200) == nfe


def test_the_method_of_the_second_half_begins_at_one_half():
    bridge = METHODS["bridge"]
    assert bridge.at(0.49) is bridge and bridge.at(0.5) is bridge.then
    assert bridge.all_prompts == {"cond", "uncond", "better", "worse"}
    assert bridge.condition_pairs == (("cond", "uncond"),) and bridge.then.condition_pairs == ()


@pytest.mark.parametrize(
    "wrong", [{"predictions": ("cond", "word")}, {"active": {"word": from_threshold}}, {"prompts": {"word": "cond"}}]
)
def test_a_prediction_that_does_not_exist_is_an_error_that_names_those_that_do(wrong):
    expected = f"a method's prediction 'word': there is none; choose {', '.join(PREDICTIONS)}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        Method(sds, **{"predictions": ("cond", "uncond"), **wrong})
