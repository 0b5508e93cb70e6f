"""Suites: their files, their runs, and which runs are skipped or resumed."""

import pytest

from nfsd3d.compare.suite import load_suite, manifest_of
from nfsd3d.errors import InputError

TEXT = """
config: nfsd
prompts: [a blue sphere, a red and white dotted mushroom]
seeds: [0, 1]
rows:
  NFSD: {}
  SDS, s = 100: {distill: sds, distill.guidance_scale: 100, train.t_max: [[0.0, 0.9]]}
oracle_fit: true
"""


def test_every_row_prompt_and_seed_is_one_run(tmp_path):
    path = tmp_path / "methods.yaml"
    path.write_text(TEXT)
    suite = load_suite(path)
    assert suite.oracle_fit and suite.seeds == (0, 1)
    manifest = manifest_of(suite, tmp_path / "out")
    assert len(manifest.jobs) == 8 and manifest.leading == 0
    last = manifest.jobs[-1]
    assert last.values == ("SDS, s = 100", "a red and white dotted mushroom", "1")
    assert manifest.run_dir(last) == tmp_path / "out/sds-s-100/a-red-and-white-dotted-mushroom-1"
    assert last.arguments == (
        "--config",
        "nfsd",
        "distill=sds",
        "distill.guidance_scale=100",
        "train.t_max=[[0.0, 0.9]]",
        "prompt=a red and white dotted mushroom",
        "seed=1",
    )


def test_a_row_may_be_of_another_experiment(tmp_path):
    (tmp_path / "suite.yaml").write_text(
        "config: nfsd\nprompts: [a red cube]\nrows:\n  recipe: {}\n  quick: {config: quick, train.steps: 7}\n"
    )
    jobs = manifest_of(load_suite(tmp_path / "suite.yaml"), tmp_path).jobs
    assert [list(job.arguments) for job in jobs] == [
        ["--config", "nfsd", "prompt=a red cube", "seed=0"],
        ["--config", "quick", "train.steps=7", "prompt=a red cube", "seed=0"],
    ]


def test_a_rows_experiment_is_a_name(tmp_path):
    (tmp_path / "suite.yaml").write_text("prompts: [a red cube]\nrows:\n  a: {config: null}\n")
    with pytest.raises(InputError, match=r"config=None: must be the name of an experiment"):
        load_suite(tmp_path / "suite.yaml")
    (tmp_path / "suite.yaml").write_text("prompts: [a red cube]\nrows:\n  a: {config: quik}\n")
    with pytest.raises(InputError, match=r"suite\.yaml: row a: config quik: no such file .*quick"):
        load_suite(tmp_path / "suite.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "no mapping"),
        ("prompt: [a blue sphere]", "prompt; a suite has the keys"),
        ("prompts: a blue sphere", "list of texts"),
        ("prompts: [a blue sphere]\nseeds: [x]", "whole numbers"),
        ("prompts: [a blue sphere]\nrows: [sds]", "rows must map"),
        ("prompts: [", "cannot be read as YAML"),
    ],
)
def test_bad_suites_are_refused(tmp_path, text, message):
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_suite(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_suite(tmp_path / "none.yaml")


def test_edits_start_from_runs_of_their_sources_which_are_run_first(tmp_path):
    path = tmp_path / "edits.yaml"
    path.write_text("config: dds\nedits: {a blue cube: [a red cube, a blue torus]}\nrows: {DDS: {train.steps: 9}}\n")
    manifest = manifest_of(load_suite(path), tmp_path)
    source, first, second = manifest.jobs
    assert manifest.leading == 1 and manifest.run_dir(source) == tmp_path / "source/a-blue-cube-0"
    assert source.arguments[:3] == ("--config", "nfsd", "prompt=a blue cube")
    assert manifest.run_dir(first) == tmp_path / "dds/a-blue-cube-to-a-red-cube-0"
    edit = (f"source_run={manifest.run_dir(source)}", "source_prompt=a blue cube", "train.steps=9")
    assert second.arguments == ("--config", "dds", *edit, "prompt=a blue torus", "seed=0")
