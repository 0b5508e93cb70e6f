import pytest
import torch

from nfsd3d.distill.gradient import Predictions, guided, predict_noise, threshold_step
from nfsd3d.distill.methods import METHODS, Method, csd, from_threshold, nfsd, sds

# The context of a branch is the constant of its name here, so that a prediction tells where it came from.
CONTEXTS = {"cond": 1.0, "uncond": 2.0, "neg": 3.0}


class Denoiser:
    """eps = context * z_t + t; remembers its calls."""

    def __init__(self):
        self.calls = []

    def predict_eps(self, z_t, t, context):
        self.calls.append((t.tolist(), context[:, 0, 0].tolist()))
        return context[:, :1, :1, None] * z_t + t[:, None, None, None]


GENERATING = [name for name, method in METHODS.items() if not method.needs_source]


def contexts(count):
    return {name: torch.full((count, 2, 3), value, dtype=torch.float64) for name, value in CONTEXTS.items()}


def latents(count, seed=0):
    return torch.randn(count, 4, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predictions(t, threshold=200, seed=0):
    t = torch.tensor(t)
    noise, cond, uncond, neg = (latents(len(t), seed + i) for i in range(4))
    return Predictions(noise=noise, cond=cond, uncond=uncond, neg=neg, t=t, threshold=threshold)


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


def test_nfsd_coefficients_sum_to_zero_above_the_threshold_and_to_one_below():
    p = predictions([199, 200])
    same = Predictions(noise=p.noise, cond=p.cond, uncond=p.cond, neg=p.cond, t=p.t, threshold=200)
    direction = nfsd(same, 7.5)
    torch.testing.assert_close(direction[0], p.cond[0])
    torch.testing.assert_close(direction[1], torch.zeros_like(p.cond[1]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", GENERATING)
def test_methods_are_equivariant_under_permutation_of_the_batch(name):
    p = predictions([5, 150, 200, 700])
    order = torch.tensor([2, 0, 3, 1])
    tensors = {field: getattr(p, field)[order] for field in ("noise", "cond", "uncond", "neg", "t")}
    shuffled = METHODS[name].function(Predictions(**tensors, threshold=200), 3.0)
    assert torch.equal(shuffled, METHODS[name].function(p, 3.0)[order])


@pytest.mark.parametrize(
    ("name", "times", "rows"),
    [
        ("sds", [10, 199, 200, 900], 8),
        ("csd", [10, 199, 200, 900], 8),
        ("nfsd", [10, 199], 4),
        ("nfsd", [200, 900], 6),
        ("nfsd", [10, 199, 200, 900], 10),
    ],
)
def test_one_call_evaluates_exactly_the_rows_that_are_needed(name, times, rows):
    denoiser, z_t, noise = Denoiser(), latents(len(times)), latents(len(times), 1)
    t = torch.tensor(times)
    p = predict_noise(denoiser, z_t, t, contexts(len(times)), METHODS[name], noise=noise, threshold=200)
    ((called_times, called_contexts),) = denoiser.calls
    assert len(called_times) == rows
    negative = [t for t, context in zip(called_times, called_contexts, strict=True) if context == CONTEXTS["neg"]]
    assert negative == ([t for t in times if t >= 200] if name == "nfsd" else [])
    assert torch.equal(p.noise, noise) and torch.equal(p.t, t) and p.threshold == 200


@pytest.mark.parametrize("name", GENERATING)
def test_the_batched_call_equals_separate_ones(name):
    times = [10, 900, 199, 200]
    t, z_t, method = torch.tensor(times), latents(4), METHODS[name]
    p = predict_noise(Denoiser(), z_t, t, contexts(4), method, noise=z_t, threshold=200)
    for branch in ("cond", "uncond", "neg"):
        for row, step in enumerate(times):
            needed = branch != "neg" or (name == "nfsd" and step >= 200)
            expected = CONTEXTS[branch] * z_t[row] + step if needed else torch.zeros_like(z_t[row])
            torch.testing.assert_close(getattr(p, branch)[row], expected)


def test_predictions_carry_no_gradient():
    z_t = latents(2).requires_grad_()
    p = predict_noise(Denoiser(), z_t, torch.tensor([1, 500]), contexts(2), METHODS["nfsd"], noise=z_t, threshold=200)
    assert not any(getattr(p, branch).requires_grad for branch in ("cond", "uncond", "neg"))


def test_a_method_is_a_function_and_a_row():
    def negative_only(p, s):
        return guided(p.uncond, p.neg, -s)

    method = Method(negative_only, branches=("uncond", "neg"), active={"uncond": from_threshold})
    denoiser, z_t, t = Denoiser(), latents(3), torch.tensor([1, 300, 50])
    p = predict_noise(denoiser, z_t, t, contexts(3), method, noise=z_t, threshold=100)
    assert len(denoiser.calls[0][0]) == 4
    direction = method.function(p, 2.0)
    uncond = torch.zeros_like(z_t)
    uncond[1] = 2 * z_t[1] + 300
    neg = 3 * z_t + t[:, None, None, None]
    torch.testing.assert_close(direction, uncond - 2 * (neg - uncond))


def test_a_missing_context_is_an_error():
    given = {name: context for name, context in contexts(1).items() if name != "neg"}
    with pytest.raises(KeyError, match="neg"):
        predict_noise(
            Denoiser(), latents(1), torch.tensor([500]), given, METHODS["nfsd"], noise=latents(1), threshold=200
        )
