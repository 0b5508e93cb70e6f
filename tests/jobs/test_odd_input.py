"""Odd sweeps: each is refused on one line and leaves nothing behind, or its values stay as they were given."""

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nfsd3d.cli.main import main
from nfsd3d.errors import InputError
from nfsd3d.jobs import controller, table
from nfsd3d.jobs.controller import ENGINE, last_engine
from nfsd3d.jobs.engines.base import EngineSettings
from nfsd3d.jobs.manifest import NAME, new_manifest, read, resume_command, write
from nfsd3d.runs import preflight

SWEEP = ("--config", "nfsd_2d", "-m", "machine=cpu", "backend=numba", "prior=shapes", "train.steps=2")
CUBE = "prompt=a red cube"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refusal(here, capsys) -> Callable[..., str]:
    """A function that returns the line with which a command line is refused; it leaves nothing behind."""

    def refused(*arguments: str) -> str:
        before = sorted(here.rglob("*"))
        assert main(arguments) == 2
        assert sorted(here.rglob("*")) == before
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return refused


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["seed=0,1,0"], "seed=0: given 2 times; give it once"),
        (["distill.guidance_scale=7.5,7.50"], "distill.guidance_scale=7.5: given 2 times"),
        (['prompt="a red cube","a red cube"'], "prompt=a red cube: given 2 times"),
        (["seed=0,1", "dry_run=true,false"], "dry_run=true,false: give one value"),
        (["seed=0,1", "hydra.launcher.workers=1,2"], "hydra.launcher.workers=1,2: give one value"),
        (["seed=0,1", f"run_dir={'x' * 300}"], "x: cannot be read (File name too long); choose another"),
        (["seed=0,1", "run_dir=file/sweep"], "run_dir=file/sweep: cannot be written (Not a directory)"),
        (["seed=0,1", "run_dir=file"], "run_dir=file: is a file; choose a directory"),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused(arguments, words, here, refusal):
    (here / "file").touch()
    assert words in refusal(*SWEEP, CUBE, *arguments)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"a\xff", "not a text in UTF-8"),
        ("a red cube\n".encode("utf-16"), "not a text in UTF-8"),
        (b"a\0b\n", "not a text, it has a byte 0"),
        (b"\n  # none\n", "has no prompt"),
        (b"a red cube\na red cube\n", "given 2 times"),
    ],
)
def test_a_file_without_prompts_is_refused(content, words, here, refusal):
    (here / "prompts.txt").write_bytes(content)
    assert words in refusal(*SWEEP, "prompt=@prompts.txt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_pipe_or_device_in_place_of_a_file_of_prompts_is_not_read(here, refusal):
    os.mkfifo("pipe")
    for name in ("pipe", "/dev/zero"):
        assert f"prompt=@{name}: cannot be read (not a regular file)" in refusal(*SWEEP, f"prompt=@{name}")


def test_each_line_of_a_file_is_one_prompt_whatever_it_holds(here, monkeypatch, capsys):
    monkeypatch.setattr(preflight, "check", lambda config, **_: None)  # the embedded prior does not know these words
    lines = ['"quoted", one', "back\\slash ${x}", "=1+1", "form\ffeed\u2028line", "a [b] {c} 'd"]
    (here / "prompts.txt").write_bytes(("\ufeff" + "\r\n".join([*lines, "", " # none", ""])).encode())
    assert main([*SWEEP, "prompt=@prompts.txt", "dry_run=true"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line[5:].rpartition("pending")[0].rstrip() for line in printed[1:-1]] == [
        *lines[:3],
        "form\\x0cfeed\\u2028line",
        lines[4],
    ]
    assert printed[-1] == "# 5 jobs on engine local; dry run: nothing was started"
    assert sorted(here.iterdir()) == [here / "prompts.txt"]


def test_one_job_is_called_a_job(here, capsys):
    assert main([*SWEEP, CUBE, "dry_run=true"]) == 0
    assert "# 1 job on engine local" in capsys.readouterr().out


def test_a_run_of_a_sweep_may_be_the_source_of_another_sweep(refusal):
    assert "source_run=runs/0-seed=0: no such run directory" in refusal(*SWEEP, CUBE, "source_run=runs/0-seed=0,b=c")


def test_an_engine_that_cannot_be_reached_leaves_no_folder(here, monkeypatch, refusal):
    def unreachable(settings, command):
        raise InputError("address=10.0.0.1:1: no cluster")

    monkeypatch.setattr(controller, "load_engine", unreachable)
    assert main([*SWEEP, CUBE, "seed=0,1", "run_dir=new/folder"]) == 2
    assert main([*SWEEP, CUBE, "seed=0,1"]) == 2
    assert list(here.iterdir()) == []
    (here / "mine").mkdir()
    assert main([*SWEEP, CUBE, "seed=0,1", "run_dir=mine"]) == 2
    assert list(here.rglob("*")) in ([], [here / "mine"])


@pytest.fixture
def sweep(here):
    """A sweep of three jobs in a folder with a space, of which none has begun."""
    folder = here / "my sweep"
    folder.mkdir()
    jobs = [(f"{n}-job", [f"seed={n}"], {"seed": str(n), "prompt": text}) for n, text in enumerate(TEXTS)]
    write(new_manifest(folder, "sweep", ["--config", "nfsd"], ["seed", "prompt"], jobs))
    return read(folder)


TEXTS = ['=HYPERLINK("x"), a', "two\nlines and \u2028", "-0.5", "@SUM(1)", "-a"]


def damaged(text: str) -> list[str]:
    header, first, *rest = text.splitlines()
    return [
        *("\n".join([header, first, *rest[:-1]]), header, text[:100], "", "\n" + text),
        "\n".join([header, first.replace("0-job", "../0-job"), *rest]),
        "\n".join([header, first.replace("0-job", "/tmp/0-job"), *rest]),
        "\n".join([header, first.replace('"0-job"', '""'), *rest]),
        "\n".join([header, first.replace('["seed=0"]', '"seed=0"'), *rest]),
        "\n".join([header, first.replace('"0", ', ""), *rest]),
        text.replace('"kind": "sweep"', '"kind": 3'),
    ]


@pytest.mark.parametrize("number", range(11))
def test_a_manifest_that_is_cut_off_or_leaves_its_folder_is_refused(number, sweep, refusal):
    path = sweep.folder / NAME
    path.write_text(damaged(path.read_text())[number])
    for action in ("status", "report", "resume", "cancel"):
        assert f"{NAME}: not a manifest of this version" in refusal("sweep", action, "my sweep")


def test_a_folder_that_is_no_sweep_is_refused(here, refusal):
    (here / "file").touch()
    for name, words in (("none", "holds no manifest.jsonl"), ("file", "cannot be read"), (".", "holds no manifest")):
        for action in ("status", "report", "resume", "cancel"):
            assert words in refusal("sweep", action, name)


def test_a_spreadsheet_computes_no_value_of_a_table(sweep):
    table.write_tables(sweep, table.rows_of(sweep))
    with (sweep.folder / "sweep.csv").open(newline="", encoding="utf-8") as stream:
        prompts = [line["prompt"] for line in csv.DictReader(stream)]
    assert prompts == [f"'{TEXTS[0]}", TEXTS[1], "-0.5", f"'{TEXTS[3]}", "'-a"]
    jobs = json.loads((sweep.folder / "sweep.json").read_text())["jobs"]
    assert [job["values"]["prompt"] for job in jobs] == TEXTS


def test_a_job_has_one_line_in_a_table(sweep):
    _, *lines = table.text_table(sweep, table.rows_of(sweep)).splitlines()
    assert len(lines) == len(TEXTS) and "two\\nlines and \\u2028" in lines[1]


def test_the_command_to_resume_can_be_pasted_into_a_shell(sweep, refusal, monkeypatch, capsys):
    assert main(["sweep", "cancel", "my sweep"]) == 0
    assert "go on with: nfsd3d sweep resume 'my sweep'" in capsys.readouterr().err
    line = refusal(*SWEEP, CUBE, "seed=5,6", 'run_dir="my sweep"')
    assert line.endswith("or: nfsd3d sweep resume 'my sweep'")
    monkeypatch.setattr("sys.argv", ["some/launch.py"])  # in a checkout
    assert resume_command(Path("x")) == "python launch.py sweep resume x"


def test_an_engine_has_the_options_of_its_own_settings_alone(sweep, refusal):
    line = refusal("sweep", "resume", "my sweep", "--partition", "gpu")
    assert "--partition: engine local has no such setting; it has engine, workers, threads, gpus, retries" in line
    assert "--timeout-min" in refusal("sweep", "resume", "my sweep", "--engine", "ray", "--timeout-min", "5")


def test_a_job_of_slurm_may_not_hear_the_signal_as_it_begins(sweep, refusal, monkeypatch):
    monkeypatch.setattr(controller, "find_spec", bool)  # as if submitit were installed
    limits = ("sweep", "resume", "my sweep", "--engine", "submitit_slurm", "--timeout-min", "2", "--signal-delay-s")
    assert "timeout_min=2: must be longer than signal_delay_s=60 and the 60 s by which SLURM" in refusal(*limits, "60")
    controller.check_engine(EngineSettings(engine="submitit_slurm", timeout_min=2, signal_delay_s=59))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"engine": "none"}', '{"engine": "ray", "more": 1}'])
def test_an_engine_that_cannot_be_read_is_told(content, sweep, capsys):
    (sweep.folder / ENGINE).write_text(content)
    assert last_engine(sweep.folder) == EngineSettings()
    assert re.fullmatch(r".*engine\.json: cannot be read \(.*\); engine local\n", capsys.readouterr().err)
    (sweep.folder / ENGINE).unlink()
    assert last_engine(sweep.folder) == EngineSettings() and capsys.readouterr().err == ""
