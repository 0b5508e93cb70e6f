"""The committed suites and results: prompts are held out, settings compose, recorded jobs stay done."""

import re
from pathlib import Path

import pytest

from nfsd3d.cli.main import main
from nfsd3d.compare.records import read
from nfsd3d.compare.suite import TIERS, load_suite, manifest_of
from nfsd3d.config import hardware
from nfsd3d.config.compose import compose
from nfsd3d.shapes.world.grammar import held_out, parse_prompt

SUITES = sorted(TIERS.glob("*.yaml"))
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "compare.jsonl"


def test_there_are_suites():
    assert SUITES


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_prompts_are_held_out_and_settings_compose(path, tmp_path):
    suite = load_suite(path)
    if suite.clip is None:  # those with ground truth
        assert {parse_prompt(prompt) for prompt in suite.prompts} <= set(held_out())
    assert len(set(suite.prompts)) == len(suite.prompts)
    first = {job.values[0]: job for job in reversed(manifest_of(suite, tmp_path).jobs)}
    for job in first.values():
        compose(job.arguments[1], [*job.arguments[2:], "prior=shapes", "machine=cpu", "backend=numba"])


def test_the_acceptance_prompts_are_in_no_other_suite():
    prompts = {
        path.stem: {parse_prompt(one) for one in load_suite(path).prompts}
        for path in SUITES
        if "public" not in path.stem
    }
    accepted = prompts.pop("acceptance")
    assert accepted == set(held_out()) - set().union(*prompts.values())


DONE = {
    "flow-core": {
        "the prior's samples, s = 7.5": "24 of 24 done",
        "the prior's samples, s = 3": "24 of 24 done",
        "NFSD": "24 of 24 done; 600 steps",
        "NFSD, at equal evaluations": "24 of 24 done; 441 steps",
        "SDS 7.5": "24 of 24 done; 600 steps",
        "SDS 100": "24 of 24 done; 600 steps",
        "SDS 7.5, constant s": "24 of 24 done; 600 steps",
        "CSD": "24 of 24 done; 600 steps",
        "VSD, s = 5": "24 of 24 done; 600 steps",
        "VSD, s = 5, at equal evaluations": "24 of 24 done; 300 steps",
        "ASD": "24 of 24 done; 600 steps",
        "ASD, at equal evaluations": "24 of 24 done; 400 steps",
        "RFDS-Rev, s = 7.5": "24 of 24 done; 600 steps",
        "RFDS-Rev, s = 7.5, at equal evaluations": "24 of 24 done; 400 steps",
        "UCM, s = 7.5": "24 of 24 done; 600 steps",
        "UCM, s = 7.5, at equal evaluations": "24 of 24 done; 240 steps",
    },
    "core": {
        "the prior's samples, s = 7.5": "24 of 24 done",
        "the prior's samples, s = 3": "24 of 24 done",
        "NFSD": "24 of 24 done; 600 steps",
        "NFSD, at equal evaluations": "24 of 24 done; 441 steps",
        "NFSD + Perp-Neg": "24 of 24 done; 600 steps",
        "NFSD + Perp-Neg, at equal evaluations": "24 of 24 done; 265 steps",
        "SDS 7.5": "24 of 24 done; 600 steps",
        "SDS 100": "24 of 24 done; 600 steps",
        "SDS 7.5, constant s": "12 of 24 done; 600 steps",
        "SDS 100, constant s": "12 of 24 done; 600 steps",
        "CSD": "24 of 24 done; 600 steps",
    },
    "wide": {
        "the prior's samples, s = 7.5": "12 of 12 done",
        "the prior's samples, s = 3": "12 of 12 done",
        "NFSD": "12 of 12 done; 600 steps",
        "NFSD, at equal evaluations": "12 of 12 done; 441 steps",
        "VSD": "12 of 12 done; 600 steps",
        "VSD, at equal evaluations": "12 of 12 done; 300 steps",
        "Bridge, s = 7.5": "12 of 12 done; 600 steps",
        "ISM, s = 3": "12 of 12 done; 600 steps",
        "ISM, s = 3, at equal evaluations": "12 of 12 done; 237 steps",
        "SDI": "12 of 12 done; 600 steps",
        "SDI, at equal evaluations": "12 of 12 done; 117 steps",
    },
    "2d": {
        "the prior's samples, s = 7.5": "24 of 24 done",
        "the prior's samples, s = 3": "24 of 24 done",
        "NFSD": "24 of 24 done; 300 steps",
        "NFSD, at equal evaluations": "24 of 24 done; 221 steps",
        "NFSD, s = 3, w = 1": "24 of 24 done; 300 steps",
        "NFSD, s = 3, w = 1, at equal evaluations": "24 of 24 done; 221 steps",
        "SDS 7.5": "24 of 24 done; 300 steps",
        "SDS 100": "24 of 24 done; 300 steps",
        "CSD, s = 3": "24 of 24 done; 300 steps",
        "VSD, s = 5": "24 of 24 done; 300 steps",
        "VSD, s = 5, at equal evaluations": "24 of 24 done; 150 steps",
        "Bridge, s = 7.5": "24 of 24 done; 300 steps",
        "ISM, s = 3": "24 of 24 done; 300 steps",
        "ISM, s = 3, at equal evaluations": "24 of 24 done; 117 steps",
        "SDI, s = 5, w = 1": "24 of 24 done; 300 steps",
        "SDI, s = 5, w = 1, at equal evaluations": "24 of 24 done; 57 steps",
    },
    "flow-2d": {
        "the prior's samples, s = 7.5": "24 of 24 done",
        "the prior's samples, s = 3": "24 of 24 done",
        "NFSD": "24 of 24 done; 300 steps",
        "NFSD, at equal evaluations": "24 of 24 done; 221 steps",
        "SDS 7.5": "24 of 24 done; 300 steps",
        "SDS 100": "24 of 24 done; 300 steps",
        "CSD, s = 3": "24 of 24 done; 300 steps",
        "VSD, s = 5": "24 of 24 done; 300 steps",
        "VSD, s = 5, at equal evaluations": "24 of 24 done; 150 steps",
        "ASD": "24 of 24 done; 300 steps",
        "ASD, at equal evaluations": "24 of 24 done; 200 steps",
        "RFDS-Rev, s = 7.5": "24 of 24 done; 300 steps",
        "RFDS-Rev, s = 7.5, at equal evaluations": "24 of 24 done; 200 steps",
        "RFDS-Rev, s = 100": "24 of 24 done; 300 steps",
        "RFDS-Rev, s = 100, at equal evaluations": "24 of 24 done; 200 steps",
        "UCM, s = 7.5": "24 of 24 done; 300 steps",
        "UCM, s = 7.5, at equal evaluations": "24 of 24 done; 120 steps",
        "UCM, s = 60": "24 of 24 done; 300 steps",
        "UCM, s = 60, at equal evaluations": "24 of 24 done; 120 steps",
        "NFSD on VP": "24 of 24 done; 300 steps",
        "NFSD on VP, at equal evaluations": "24 of 24 done; 221 steps",
        "ASD on VP": "24 of 24 done; 300 steps",
        "ASD on VP, at equal evaluations": "24 of 24 done; 200 steps",
        "RFDS-Rev on VP, s = 7.5": "24 of 24 done; 300 steps",
        "RFDS-Rev on VP, s = 7.5, at equal evaluations": "24 of 24 done; 200 steps",
        "UCM on VP, s = 7.5": "24 of 24 done; 300 steps",
        "UCM on VP, s = 7.5, at equal evaluations": "24 of 24 done; 120 steps",
    },
    "length": {
        "the prior's samples, s = 7.5": "4 of 4 done",
        "the prior's samples, s = 3": "4 of 4 done",
        "NFSD": "4 of 4 done; 600 steps",
        "SDS 100": "4 of 4 done; 600 steps",
        "NFSD, 2,000 steps": "4 of 4 done; 2000 steps",
        "SDS 100, 2,000 steps": "4 of 4 done; 2000 steps",
    },
}
"""By tier and row, the recorded jobs of docs/results/compare.jsonl that today's recipes still count as done."""


@pytest.mark.parametrize("tier", DONE)
def test_the_recorded_jobs_stay_done(tier, capsys, monkeypatch):
    monkeypatch.setattr(hardware, "_count_gpus", lambda: 0)
    assert main(["compare", "--tier", tier, "--results", str(RESULTS), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "no results of this version" not in printed
    rows = dict(re.findall(r"^  (.*): (\d+ of \d+ done(?:; \d+ steps)?)", printed, re.MULTILINE))
    assert rows == DONE[tier]
    counts = [text.split()[::2][:2] for text in rows.values()]
    done, jobs = (sum(map(int, numbers)) for numbers in zip(*counts, strict=True))
    assert f"{tier}: {jobs} jobs, {done} done, {jobs - done} to do" in printed


def test_records_of_version_0_1_are_read():
    """Their field for the classifier's weights is ``judge``."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines()
    assert sum('"judge"' in line for line in lines) == 860
    records, unreadable = read(RESULTS)
    assert len(records) == len(lines) and not unreadable
    assert all(record.classifier for record in records)
