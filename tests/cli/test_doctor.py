"""The command that examines an installation."""

import re

import pytest

from nfsd3d.cli import doctor
from nfsd3d.cli.main import main
from nfsd3d.config import hardware
from nfsd3d.errors import RunFailed


def test_what_is_missing_has_its_pip_line(monkeypatch, capsys):
    installed = hardware.installed_version
    monkeypatch.setattr(hardware, "installed_version", lambda name: None if name == "viser" else installed(name))
    assert main(["doctor"]) == 0
    assert "viser: not installed; for view and viewer=true: pip install 'nfsd3d[viewer]'" in capsys.readouterr().out


def test_a_missing_requirement_is_named_and_the_self_test_left_out(monkeypatch, capsys):
    monkeypatch.setattr(hardware, "installed_version", lambda name: None)
    assert main(["doctor", "--self-test"]) == 1
    printed = capsys.readouterr().out
    assert "missing: torch, diffusers" in printed and "self-test" not in printed


def test_the_self_test_makes_a_run_and_reads_it(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "SELF_TEST", [*doctor.SELF_TEST, "train.steps=4", "machine=cpu"])
    assert main(["doctor", "--self-test"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\d steps/s; export [\d.]+ s; \d+ triangles\nself-test passed in \d+ s\n", printed)


def test_a_missing_result_fails_the_self_test(monkeypatch):
    monkeypatch.setattr(doctor, "SELF_TEST", [*doctor.SELF_TEST, "train.steps=2", "machine=cpu"])

    def train_without_page(config, label):
        from nfsd3d.train import run

        monkeypatch.setattr("nfsd3d.visualize.report.write_report", lambda *arguments: None)
        return run.train_and_export(config)

    monkeypatch.setattr(doctor, "start", train_without_page)
    with pytest.raises(RunFailed, match=r"self-test: report\.html: missing or empty"):
        doctor.main(["--self-test"])
