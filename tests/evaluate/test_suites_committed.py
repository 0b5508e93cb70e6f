"""The committed suites: every prompt is held out, every setting composes."""

from pathlib import Path

import pytest

from nfsd3d.config import compose
from nfsd3d.evaluate.suite import jobs_of, load_suite
from nfsd3d.shapes.grammar import held_out, parse_prompt

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
        compose(suite.config, [*job.arguments[2:], "prior=shapes", "machine=cpu"])
