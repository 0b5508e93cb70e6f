"""The check of the Dockerfiles: parsing and detected problems."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nfsd3d

ROOT = Path(nfsd3d.__file__).parent.parent


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("check_docker", ROOT / "scripts" / "check_docker.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_docker"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["check_docker"]


SMALL = """# comment
ARG BASE=1
FROM python:3.12-slim

ENV A=1 B="two words"
run echo one \\
    # between
    && echo "$A" \\

    && echo three
CMD ["--help"]
"""


def test_reads_continued_lines_comments_and_settings(check):
    instructions = check.parse(SMALL)
    assert [(one.line, one.name) for one in instructions] == [
        (2, "ARG"), (3, "FROM"), (5, "ENV"), (6, "RUN"), (11, "CMD")
    ]  # fmt: skip
    assert instructions[2].settings == {"A": "1", "B": "two words"}
    assert instructions[3].value == 'echo one && echo "$A" && echo three'
    assert instructions[4].words == ["--help"]
    assert check.Instruction(1, "ARG", "NAME").settings == {"NAME": ""}
    with pytest.raises(ValueError, match="line 2: here-documents"):
        check.parse("FROM a:1\nRUN <<EOF\nEOF\n")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("RNU echo", "line 2: RNU is no instruction"),
        ("RUN", "line 2: RUN of nothing"),
        ("RUN echo (", "line 2: the shell does not understand it"),
        (
            "RUN apt-get update && apt-get install git && rm -rf /var/lib/apt/lists/*",
            "line 2: apt-get install without -y",
        ),
        ("RUN apt-get install -y git", "line 2: apt-get install without update"),
        ("WORKDIR here", "line 2: WORKDIR here is not absolute"),
        ("COPY nowhere /x", "line 2: COPY: nowhere does not exist"),
        ("COPY .", "line 2: COPY has no target"),
        ("CMD python launch.py", "line 2: CMD is not in JSON form"),
        ("CMD ['--help']", "line 2: CMD of nothing, or of broken JSON"),
        ("ENV NAME", "line 2: ENV NAME sets nothing"),
        ('CMD ["a"]\nCMD ["b"]', "more than one CMD"),
        ("FROM python", "line 2: python has no version"),
    ],
)
def test_each_problem_of_a_dockerfile_is_found(check, line, problem, tmp_path):
    (found,) = check.problems(check.parse(f"FROM python:3.12\n{line}\n"), tmp_path)
    assert problem in found


def test_a_dockerfile_begins_with_from(check, tmp_path):
    assert check.problems(check.parse("ARG A=1\nFROM python:3.12"), tmp_path) == []
    for text in ("RUN true\nFROM python:3.12", "RUN true"):
        assert check.problems(check.parse(text), tmp_path) == ["line 1: does not begin with FROM"]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_the_projects_dockerfiles_have_no_problems(check, name):
    instructions = check.parse((ROOT / "docker" / name).read_text(encoding="utf-8"))
    assert len(instructions) > 8
    assert check.problems(instructions, ROOT) == []


def test_instructions_are_executed_in_a_folder(check, tmp_path, capfd):
    context, image = tmp_path / "context", tmp_path / "image"
    (context / "sub").mkdir(parents=True)
    image.mkdir()
    (context / "sub" / "file").write_text("content")
    (context / "untracked").touch()
    subprocess.run("git init -q && git add sub", shell=True, cwd=context, check=True)
    text = """FROM python:3.12-slim
ARG GIVEN=default
ARG OTHER=default
ENV GREETING="good morning"
WORKDIR /srv/here
COPY . .
RUN echo "$GIVEN $OTHER $GREETING" > out && cat sub/file
ENTRYPOINT ["sh", "-c"]
CMD ["cat out"]
"""
    check.execute(check.parse(text), image, context, {"PATH": os.environ["PATH"]}, {"GIVEN": "mine"})
    assert (image / "srv" / "here" / "out").read_text() == "mine default good morning\n"
    assert not (image / "work" / "here" / "untracked").exists()
    printed = capfd.readouterr().out
    assert "content" in printed
    assert printed.endswith("sh -c cat out\nmine default good morning\n")
    with pytest.raises(subprocess.CalledProcessError):
        check.execute(check.parse("FROM python:3.12\nRUN false"), image, context, {"PATH": os.environ["PATH"]}, {})
    with pytest.raises(ValueError, match="line 2: USER is not imitated"):
        check.execute(check.parse("FROM python:3.12\nUSER nobody"), image, context, {"PATH": os.environ["PATH"]}, {})
