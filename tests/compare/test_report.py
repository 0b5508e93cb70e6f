"""The report of records: pairing, intervals, tables."""

import numpy as np
import pytest

from nfsd3d.compare.records import Record
from nfsd3d.compare.report import (
    Group,
    differences_table,
    mean_over_prompts,
    means_table,
    paired,
    row_reports,
)
from nfsd3d.compare.report import margin as margin_of
from nfsd3d.evaluate.statistics import estimate_over_prompts


def record(row, prompt, seed=0, margin=1.0, **more):
    score = {"margin": margin, "object": 1.0, "color": 1.0, "pattern": 0.0, "retrieved": 1.0}
    values = {
        "tier": "t",
        "kind": "run",
        "equal": False,
        "recipe": "r",
        "prior": "p",
        "classifier": "j",
        "settings": {},
    }
    values |= {"steps": 600, "status": "done", "score": score | more.pop("score", {}), "evaluations": 4800}
    values |= {"seconds": 100.0, "cpu_seconds": 99.0, "image": None, "revision": None}
    return Record(row=row, prompt=prompt, seed=seed, **{**values, **more})


def test_the_interval_of_two_prompts_is_known():
    # Of two values the resampled mean is the lower, the middle or the upper with probability 1/4, 1/2, 1/4.
    interval = estimate_over_prompts([1.0, 3.0])
    assert (interval.mean, interval.low, interval.high, interval.count) == (2.0, 1.0, 3.0, 2)
    assert estimate_over_prompts([1.0, 3.0], level=0.4) == estimate_over_prompts([1.0, 3.0], level=0.2)
    assert estimate_over_prompts([1.0, 3.0], level=0.4).low == 2.0


def test_the_interval_of_many_prompts_is_the_normal_one():
    values = np.random.default_rng(1).normal(0.5, 2.0, 400)
    interval = estimate_over_prompts(list(values))
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.02)


def test_pairs_have_the_same_prompt_and_seed_and_seeds_are_averaged_first():
    ours = [record("a", "x", 0, 5.0), record("a", "x", 1, 1.0), record("a", "y", 0, 2.0), record("a", "z", 0, 9.0)]
    theirs = [record("b", "x", 0, 4.0), record("b", "x", 1, 3.0), record("b", "y", 0, 1.0), record("b", "y", 1, 7.0)]
    interval = paired(ours, theirs, margin_of)
    assert interval.mean == pytest.approx(((1 - 2) / 2 + 1) / 2) and interval.count == 2
    assert (interval.low, interval.high) == (-0.5, 1.0)
    assert paired(ours, [], margin_of).count == 0
    assert mean_over_prompts(ours, margin_of) == pytest.approx((3 + 2 + 9) / 3)


@pytest.fixture
def groups():
    """NFSD with a shorter second run, and SDS, which is as cheap in the first place."""
    scene = {"iou": 0.7, "ellipsoid_iou": 0.5, "view_error_deg": None, "janus": None}
    nfsd = [record("NFSD", "x", margin=3.0, score=scene), record("NFSD", "y", margin=5.0, score=scene)]
    short = [record("NFSD", "x", margin=2.0, equal=True, steps=441, score=scene)]
    sds = [
        record("SDS", "x", margin=1.0, score=scene | {"iou": 0.6, "janus": 1.0}),
        record("SDS", "y", margin=0.0, status="diverged", score=scene),
    ]
    return {"NFSD": Group(nfsd, short), "SDS": Group(sds, sds)}


def test_tables_show_both_columns_and_who_diverged(groups):
    table = means_table(groups, images=False, equal=True).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert len({len(row) for row in cells}) == 1
    nfsd, sds = (dict(zip([*cells[0][:2], "margin", "equal"], row, strict=False)) for row in cells[2:])
    assert (nfsd["n"], nfsd["margin"], nfsd["equal"]) == ("2", "4.00", "2.00")
    assert (sds["margin"], sds["equal"]) == ("0.50", "0.50")
    assert "1 of 2" in cells[3] and "none" in cells[2] and "441" in cells[2]
    assert "100 %" in cells[3][cells[0].index("Janus")]
    images = means_table(groups, images=True, equal=False)
    assert "IoU" not in images and "equal" not in images


def test_differences_are_to_the_baseline(groups):
    table = differences_table(groups, {"NFSD": "NFSD", "SDS": "NFSD"}, images=False, equal=True).splitlines()
    assert len(table) == 3
    assert table[2].startswith("| SDS | NFSD | 2 | -3.50 [-5.00, -2.00] | -1.00 [-1.00, -1.00] | -0.05 [-0.10, +0.00]")
    assert differences_table(groups, {}, images=True, equal=False) == ""
    rows = row_reports(groups, {"SDS": "NFSD"})
    assert rows["SDS"]["differences"]["margin"]["full"]["mean"] == -3.5
    assert rows["NFSD"]["iou_over_ellipsoid"] == pytest.approx(0.2) and "minus" not in rows["NFSD"]
