import ast
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import yaml

import nfsd3d
from nfsd3d.cli.main import COMMANDS

ROOT = Path(nfsd3d.__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


REPOSITORY = "https://example.org/owner/nfsd3d"


def build(target: str, folder: Path, **environment: str) -> Path:
    """The wheel or sdist that the source tree makes."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    variables = {name: value for name, value in os.environ.items() if name != "NFSD3D_REPOSITORY_URL"}
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, env={**variables, **environment}
    )
    assert result.returncode == 0, result.stderr
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> dict[str, bytes]:
    """The files of the wheel that the source tree makes, by name."""
    with zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel"))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> dict[str, bytes]:
    """The files of the sdist, by their names below its folder, built for a repository's address."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", folder, NFSD3D_REPOSITORY_URL=f"{REPOSITORY}/")) as archive:
        files = [member for member in archive if member.isfile()]
        return {name.name.split("/", 1)[1]: archive.extractfile(name).read() for name in files}


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
    assert b"nfsd3d = nfsd3d.__main__:main" in wheel[f"{info}/entry_points.txt"]
    metadata = wheel[f"{info}/METADATA"].decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: <3.14,>=3.11" in metadata
    assert f"{info}/licenses/LICENSE" in wheel


def test_the_wheel_is_typed(wheel):
    assert "nfsd3d/py.typed" in wheel


def test_the_sdist_holds_what_its_own_tests_need(sdist):
    folders = ("configs", "docker", "docs", "nfsd3d", "scripts", "tests", ".github")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [path for path in ROOT.iterdir() if path.is_file() and path.name not in (".git", "PKG-INFO")]
    ours = {path.relative_to(ROOT).as_posix() for path in files if path.suffix not in (".pyc", ".nbi", ".nbc")}
    assert {name for name in ours if not name.startswith("docs/results/images/")} <= sdist.keys()


def test_relative_links_of_the_description_lead_into_the_repository(sdist):
    metadata = message_from_string(sdist["PKG-INFO"].decode())
    ref = "HEAD" if "dev" in nfsd3d.__version__ else f"v{nfsd3d.__version__}"
    text = str(metadata.get_payload())
    assert f"]({REPOSITORY}/raw/{ref}/docs/images/nfsd_suite.jpg)" in text
    assert f"]({REPOSITORY}/blob/{ref}/docs/gpu.md)" in text
    assert re.findall(r"\]\((?!https?:)[^)]*\)", text) == []
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL"))
    assert urls.keys() == {"Source", "Documentation", "Changelog"}
    assert all(url.startswith(REPOSITORY) for url in urls.values())


def test_links_stay_relative_without_a_repository(wheel):
    metadata = message_from_string(wheel[f"nfsd3d-{nfsd3d.__version__}.dist-info/METADATA"].decode())
    assert "](docs/images/nfsd_suite.jpg)" in str(metadata.get_payload())
    assert metadata.get_all("Project-URL") is None


def test_links_within_links_are_made_absolute_too():
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = "[![a [b]](x.png)](y.md#z) ![c](d/e.jpg) [f](https://g) [h](#i)"
    assert module.absolute_links(text, REPOSITORY, "v1") == (
        f"[![a [b]]({REPOSITORY}/raw/v1/x.png)]({REPOSITORY}/blob/v1/y.md#z) ![c]({REPOSITORY}/raw/v1/d/e.jpg) "
        "[f](https://g) [h](#i)"
    )
    assert (module.git_ref("1.2.0"), module.git_ref("1.3.0.dev0")) == ("v1.2.0", "HEAD")


@pytest.mark.parametrize("name", ["ci", "release"])
def test_workflows_run_on_every_supported_python_and_use_what_the_makefile_has(name):
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8")
    workflow = yaml.load(text, Loader=yaml.BaseLoader)  # a safe loader, for which "on" is no boolean
    assert {"name", "on", "permissions", "jobs"} <= workflow.keys()
    for job in workflow["jobs"].values():
        assert {"runs-on", "steps"} <= job.keys()
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    called = re.findall(r"^ *(?:- )?(?:run: )?make .* ([\w./-]+)$", text, re.MULTILINE)
    assert called and set(called) <= {*targets, ".venv/.installed-dev"}
    assert "vars.TORCH_ARGS" in text
    assert "://" not in text


def test_continuous_integration_covers_the_supported_versions_of_python():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    versions = yaml.safe_load(text)["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert versions == ["3.11", "3.12", "3.13"]
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.14"
    classifiers = PROJECT["project"]["classifiers"]
    assert {f"Programming Language :: Python :: {version}" for version in versions} <= set(classifiers)


def test_torch_has_an_upper_bound():
    assert "torch>=2.11,<2.15" in PROJECT["project"]["dependencies"]


def test_the_changelog_names_every_old_spelling():
    from nfsd3d.cli.options import RENAMED_OPTIONS
    from nfsd3d.config.renamed import RENAMED

    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for old, new in {**RENAMED, **RENAMED_OPTIONS}.items():
        assert f"| `{old}` | `{new}` |" in text


def test_every_import_is_a_declared_dependency():
    distributions = {"yaml": "PyYAML", "PIL": "pillow", "hydra": "hydra-core"}
    declared = {_name(line) for line in PROJECT["project"]["dependencies"]}
    optional = {
        *("lib3mf", "pxr"),  # 3MF, USDZ
        "tinycudann",
        "triton",
        "tokenizers",
        "joblib",
        "submitit",
        "ray",
        "optuna",
        "viser",
        "wandb",
        "mlflow",
        "IPython",
    }
    for path in (ROOT / "nfsd3d").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"nfsd3d"} - optional:
                assert _name(distributions.get(top, top)) in declared | {"pydantic-core"}, f"{path} imports {top}"


def test_types_are_checked_alike_with_and_without_what_only_some_install():
    """mypy must not need a package that [dev] does not install."""
    extras = PROJECT["project"]["optional-dependencies"]
    assert extras["dev"][-1] == "nfsd3d[assets,viewer]"
    installed = [*PROJECT["project"]["dependencies"], *extras["dev"], *extras["assets"], *extras["viewer"]]
    known = {_name(line).replace("-", "_") for line in installed}
    # Of transformers, of pydantic, and two of viser.
    known |= {"tokenizers", "pydantic_core", "msgspec", "websockets"}
    for overrides in PROJECT["tool"]["mypy"]["overrides"]:
        if overrides.get("ignore_missing_imports"):
            known |= {name.removesuffix(".*") for name in overrides["module"]}
    distributions = {"yaml": "pyyaml", "PIL": "pillow", "hydra": "hydra_core"}
    files = [path for folder in ("nfsd3d", "scripts", "tests") for path in (ROOT / folder).rglob("*.py")]
    own = {"nfsd3d", "scripts", "tests", *(path.stem for path in (ROOT / "scripts").iterdir())}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - own:
                assert distributions.get(top, top) in known, f"{path}: mypy needs an override for {top}"


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


def test_every_file_that_the_makefile_names_exists():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"\b(?:tests|scripts)/[\w/]+(?:\.\w+)?", text)
    assert "tests/test_docs.py" in named and [path for path in named if not (ROOT / path).exists()] == []
