"""The committed suites: every prompt is held out, every setting composes."""

from dataclasses import replace
from pathlib import Path

import pytest

from nfsd3d.compare.jobs import trials_of
from nfsd3d.compare.records import read
from nfsd3d.compare.suite import jobs_of, load_suite
from nfsd3d.config import hardware
from nfsd3d.config.compose import compose
from nfsd3d.shapes.world.grammar import held_out, parse_prompt

SUITES = sorted((Path(__file__).parents[2] / "scripts" / "suites").glob("*.yaml"))


def test_there_are_suites():
    assert SUITES


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_prompts_are_held_out_and_settings_compose(path, tmp_path):
    suite = load_suite(path)
    assert {parse_prompt(prompt) for prompt in suite.prompts} <= set(held_out())
    assert len(set(suite.prompts)) == len(suite.prompts)
    first = {job.row: job for job in reversed(jobs_of(suite, tmp_path))}
    for job in first.values():
        compose(suite.config, [*job.arguments[2:], "prior=shapes", "machine=cpu", "backend=numba"])


def test_the_committed_results_are_those_of_todays_recipes_and_weights(monkeypatch):
    monkeypatch.setattr(hardware, "_count_gpus", lambda: 0)
    path = Path(__file__).parents[2] / "docs" / "results" / "compare.jsonl"
    if not path.exists():
        pytest.skip("a source distribution has no docs")
    records, unreadable = read(path)
    assert records and not unreadable
    done = {record.key for record in records}
    for tier in ("core", "2d"):
        suite = load_suite(next(path for path in SUITES if path.stem == f"tier-{tier}"))
        trials = trials_of(replace(suite, prompts=suite.prompts[:1], seeds=(0,)), tier, oracle_fit=False)
        assert [trial.row for trial in trials if trial.key not in done] == []
