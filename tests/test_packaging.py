import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import nfsd3d
from nfsd3d.cli.main import COMMANDS

ROOT = Path(nfsd3d.__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> dict[str, bytes]:
    """The files of the wheel that the source tree makes, by name."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_every_module_and_configuration(wheel):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nfsd3d").rglob("*.py")}
    configs = {f"nfsd3d/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert modules | configs <= wheel.keys()
    assert wheel["nfsd3d/configs/nfsd.yaml"] == (ROOT / "configs" / "nfsd.yaml").read_bytes()


def test_the_wheel_holds_all_data_of_the_package(wheel):
    data = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "nfsd3d").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".nbi", ".nbc")
    }
    assert data <= wheel.keys()
    assert not [name for name in wheel if name.endswith((".pyc", ".nbi", ".nbc"))]


def test_the_wheel_holds_nothing_else(wheel):
    assert {name.split("/")[0] for name in wheel} == {"nfsd3d", f"nfsd3d-{nfsd3d.__version__}.dist-info"}


def test_the_wheel_describes_itself(wheel):
    info = f"nfsd3d-{nfsd3d.__version__}.dist-info"
    assert b"nfsd3d = nfsd3d.cli.main:main" in wheel[f"{info}/entry_points.txt"]
    metadata = wheel[f"{info}/METADATA"].decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: <3.14,>=3.11" in metadata
    assert f"{info}/licenses/LICENSE" in wheel


def test_every_import_is_a_declared_dependency():
    distributions = {"yaml": "PyYAML", "PIL": "pillow", "hydra": "hydra-core"}
    declared = {_name(line) for line in PROJECT["project"]["dependencies"]}
    optional = {"tinycudann", "triton", "tokenizers"}
    for path in (ROOT / "nfsd3d").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"nfsd3d"} - optional:
                assert _name(distributions.get(top, top)) in declared | {"pydantic-core"}, f"{path} imports {top}"


def test_constraints_pin_every_dependency():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_name(line): line for line in lines if line and not line.startswith("#")}
    assert all("==" in line for line in pinned.values())
    assert {_name(line) for line in PROJECT["project"]["dependencies"]} <= pinned.keys()
    assert pinned["torch"] == "torch==2.13.0"
    for place in ("Makefile", "docker/Dockerfile", "docker/Dockerfile.cpu"):
        assert "torch==2.13.0" in (ROOT / place).read_text(encoding="utf-8")


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def test_no_dependency_needs_torchvision():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert not re.search(r'"(torchvision|lpips|open.clip|piq)', text)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_subcommand_has_help(command):
    code = f"import sys; from nfsd3d.cli.main import main; sys.exit(main([{command!r}, '--help']))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert f"nfsd3d {command}" in result.stdout


def test_make_refuses_an_old_python(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1 && exit 0\nexit 1\n')
    old.chmod(0o755)
    venv = tmp_path / "venv"
    command = ["make", "-C", str(ROOT), f"PYTHON={old}", f"VENV={venv}", f"{venv}/.made"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "error: Python 3.9.1 will not do: 3.11, 3.12 or 3.13 is needed" in result.stderr
    assert not venv.exists()
