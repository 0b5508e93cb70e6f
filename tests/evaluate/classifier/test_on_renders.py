"""The classifier on true renders: a short training, and the calibration of the shipped one."""

import pytest
import torch

from nfsd3d.evaluate.classifier.calibration import Calibration, calibrate_all, load_calibration
from nfsd3d.evaluate.classifier.model import WEIGHTS, Classifier
from nfsd3d.evaluate.classifier.training import (
    Truth,
    plain_backgrounds,
    random_composition,
    render_truth,
    train_classifier,
)
from nfsd3d.prior.files.locate import EMBEDDED
from nfsd3d.prior.load_prior import load_prior
from nfsd3d.shapes.world.grammar import COLORS
from nfsd3d.shapes.world.objects import OBJECTS

UNSEEN, RECONSTRUCTED, WRONG = (
    "unseen true renders",
    "the same through the prior's autoencoder",
    "the same with wrong prompts (chance)",
)


def test_the_stored_calibration_meets_the_required_accuracies():
    rows = load_calibration()
    assert list(rows) == [UNSEEN, RECONSTRUCTED, WRONG]
    assert rows[UNSEEN].images >= 2000
    assert rows[UNSEEN].object >= 0.98
    assert rows[UNSEEN].color >= 0.99
    assert rows[UNSEEN].pattern >= 0.97
    assert min(rows[RECONSTRUCTED].object, rows[RECONSTRUCTED].color, rows[RECONSTRUCTED].pattern) >= 0.95
    _assert_chance(rows[WRONG])


def test_weights_are_small():
    assert WEIGHTS.stat().st_size < 4e6


@pytest.fixture(scope="module")
def truth() -> Truth:
    """64 renders of each object, unseen in training and calibration."""
    return render_truth(1, seed=77, workers=1)


def test_calibration_is_reproduced_on_other_renders(truth):
    again = calibrate_all(Classifier.load(), truth, load_prior(EMBEDDED))
    stored = load_calibration()
    for name in (UNSEEN, RECONSTRUCTED):
        for attribute in ("object", "color", "pattern"):
            # 1,024 images: three standard errors of a share of .95 are .02.
            assert getattr(again[name], attribute) == pytest.approx(getattr(stored[name], attribute), abs=0.02)
    assert again[UNSEEN].azimuth_error_deg < 10
    _assert_chance(again[WRONG])


def _assert_chance(row: Calibration) -> None:
    assert row.object == pytest.approx(1 / 16, abs=0.03)
    assert 0.05 < row.color < 0.2  # one of ten, and either of two in half of the patterns
    assert row.pattern == pytest.approx(1 / 4, abs=0.05)
    assert row.retrieved < 0.02


def test_the_prediction_for_an_empty_image_is_uncertain():
    prediction = Classifier.load().classify(torch.full((1, 3, 64, 64), 0.5))
    assert prediction.object.exp().max() < 0.999


def test_true_renders_cover_all_objects_and_take_any_background(truth):
    assert {composition.object for composition in truth.compositions} == set(OBJECTS)
    white = truth.over(torch.ones(len(truth), 3))
    corner = white[:, :, 0, 0]
    assert (corner > 0.99).all(1).float().mean() > 0.9
    assert white.min() >= 0 and white.max() <= 1 + 1e-6


def test_backgrounds_differ_from_the_main_colour():
    rng = torch.Generator().manual_seed(0)
    compositions = [random_composition(rng, "cube") for _ in range(500)]
    main = torch.tensor([COLORS[c.color] for c in compositions])
    assert ((plain_backgrounds(rng, compositions) - main).norm(dim=1) >= 0.29).all()


def test_training_lowers_the_loss(truth):
    losses: list[float] = []
    classifier = train_classifier(truth, steps=60, batch=64, learning_rate=1e-3, on_step=losses.append)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert not classifier.training
