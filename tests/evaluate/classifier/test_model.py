"""The classifier's predictions: compositions, pooling, attributes."""

import math

import pytest
import torch

from nfsd3d.errors import InputError
from nfsd3d.evaluate.classifier.alignment import align, distractors, view_errors
from nfsd3d.evaluate.classifier.model import AZIMUTHS, Classifier, Prediction
from nfsd3d.shapes.world.grammar import COLORS, PATTERNS, VIEWS, Composition, parse_prompt
from nfsd3d.shapes.world.objects import OBJECTS

MUSHROOM = parse_prompt("a red and white dotted mushroom")


def prediction_on(
    composition: Composition, view: str = "front", azimuth_deg: float = 0.0, doubt: float = 0.05
) -> Prediction:
    """[1] a nearly certain prediction."""

    def one(names: list[str], name: str) -> torch.Tensor:
        scores = torch.full((1, len(names)), doubt / (len(names) - 1))
        scores[0, names.index(name)] = 1 - doubt
        return scores.log()

    bins = torch.full((1, AZIMUTHS), 1e-6)
    exact = azimuth_deg % 360 / 360 * AZIMUTHS
    lower = math.floor(exact)
    bins[0, lower % AZIMUTHS] += 1 - (exact - lower)
    bins[0, (lower + 1) % AZIMUTHS] += exact - lower
    return Prediction(
        object=one(list(OBJECTS), composition.object),
        color=one(list(COLORS), composition.color),
        second=one(list(COLORS), composition.second or composition.color),
        pattern=one(list(PATTERNS), composition.pattern),
        view=one(list(VIEWS), view),
        azimuth=(bins / bins.sum()).log(),
    )


def joined(verdicts: list[Prediction]) -> Prediction:
    names = ("object", "color", "second", "pattern", "view", "azimuth")
    return Prediction(**{name: torch.cat([getattr(prediction, name) for prediction in verdicts]) for name in names})


@pytest.mark.parametrize(
    "prompt", ["a blue sphere", "a red and white dotted mushroom", "a pink and brown striped house"]
)
def test_probabilities_of_all_compositions_of_an_object_sum_to_its_own(prompt):
    prediction = prediction_on(parse_prompt(prompt), doubt=0.3)
    name = parse_prompt(prompt).object
    colors = list(COLORS)
    total = sum(
        prediction.log_likelihood([Composition(name, pattern, a, b)]).exp()
        for pattern in ("dotted",)
        for a in colors
        for b in colors
        if a != b
    )
    same = (prediction.color.exp() * prediction.second.exp()).sum()  # "red and red dotted" is no composition
    expected = (
        prediction.object.exp()[0, list(OBJECTS).index(name)] * prediction.pattern.exp()[0, PATTERNS.index("dotted")]
    )
    assert float(total) == pytest.approx(float(expected * (1 - same)), rel=1e-4)


def test_either_order_of_the_colours_counts_for_symmetric_patterns_only():
    striped = prediction_on(parse_prompt("a red and white striped cube"))
    swapped = parse_prompt("a white and red striped cube")
    assert striped.right([swapped])["color"].item()
    both = striped.log_likelihood([swapped, parse_prompt("a red and white striped cube")])[0]
    assert both[0] == pytest.approx(both[1].item())
    dotted = prediction_on(MUSHROOM)
    swapped = parse_prompt("a white and red dotted mushroom")
    assert not dotted.right([swapped])["color"].item()
    assert dotted.log_likelihood([swapped])[0, 0] < dotted.log_likelihood([MUSHROOM])[0, 0] - 2


def test_right_is_per_attribute():
    prediction = prediction_on(parse_prompt("a red and white dotted tree"))
    assert {name: bool(value) for name, value in prediction.right([MUSHROOM]).items()} == {
        "object": False,
        "color": True,
        "pattern": True,
    }


def test_views_together_outvote_a_doubtful_one():
    prediction = joined([prediction_on(MUSHROOM)] * 3 + [prediction_on(parse_prompt("a blue cube"), doubt=0.6)])
    assert prediction.pooled().objects() == ["mushroom"]
    assert prediction.objects() == ["mushroom"] * 3 + ["cube"]
    assert prediction.pooled().object.exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("azimuth", [0.0, 7.0, -170.0, 179.0, 90.0])
def test_azimuth_is_read_between_the_bins(azimuth):
    seen = prediction_on(MUSHROOM, azimuth_deg=azimuth).azimuths_deg().item()
    assert abs((seen - azimuth + 180) % 360 - 180) < 0.1


def test_view_errors_and_janus_faces():
    taken = torch.arange(8) * 45.0
    honest = joined([prediction_on(MUSHROOM, azimuth_deg=float(a)) for a in taken])
    error, janus = view_errors(honest, torch.deg2rad(taken))
    assert error < 0.1 and not janus
    two_faced = joined([prediction_on(MUSHROOM, azimuth_deg=float(a) * 2) for a in taken])  # a front at 0 and at 180
    error, janus = view_errors(two_faced, torch.deg2rad(taken))
    assert error == pytest.approx(90, abs=0.1) and janus


def test_distractors_are_all_single_changes():
    others = distractors(MUSHROOM)
    assert len(others) == len(set(others)) == 15 + 8 + 3
    for other in others:
        changed = [name for name in ("object", "color", "pattern") if getattr(other, name) != getattr(MUSHROOM, name)]
        assert len(changed) == 1
    plain = distractors(parse_prompt("a blue sphere"))
    assert len(plain) == len(set(plain)) == 15 + 9 + 3 * 9


def test_alignment_finds_the_truth_and_its_margin():
    wrong = parse_prompt("a red and white striped mushroom")
    result = align(joined([prediction_on(MUSHROOM), prediction_on(wrong)]), [MUSHROOM, MUSHROOM])
    assert result.retrieved.tolist() == [True, False]
    assert result.margin[0] > 0 > result.margin[1]
    assert result.pattern.tolist() == [True, False] and result.object.tolist() == [True, True]
    with pytest.raises(ValueError, match="1 images for 2"):
        align(prediction_on(MUSHROOM), [MUSHROOM, MUSHROOM])


def test_classifier_takes_any_size_and_refuses_other_shapes():
    torch.manual_seed(0)
    classifier = Classifier().eval()
    assert classifier.classify(torch.rand(3, 3, 96, 96)).object.shape == (3, len(OBJECTS))
    with pytest.raises(ValueError, match=r"\[B,3,H,W\]"):
        classifier(torch.rand(3, 1, 64, 64))


def test_missing_weights_name_the_remedy(tmp_path):
    with pytest.raises(InputError, match="train_classifier"):
        Classifier.load(tmp_path / "classifier.safetensors")
