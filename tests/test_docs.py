"""The documentation: every command in it parses, every link leads somewhere, every path and setting exists."""

import argparse
import ast
import importlib
import itertools
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from torch.distributed import run

import nfsd3d
from nfsd3d.cli import main as command_line
from nfsd3d.config.compose import compose
from nfsd3d.config.schema import known_keys
from nfsd3d.prior.files.locate import locate
from nfsd3d.runs import preflight

ROOT = Path(nfsd3d.__file__).parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "nfsd3d").rglob("*.md")],
    key=lambda path: path.relative_to(ROOT).as_posix(),
)
YAML = sorted([*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "scripts" / "suites").glob("*.yaml")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HISTORY = {"CHANGELOG.md"}
"""Pages that name what is no longer there."""
SUBCOMMAND_OF_SCRIPT = {"export_mesh": "export"}
"""Subcommands whose script has another name."""
PROGRAMS = r"nfsd3d|python launch\.py|python -m nfsd3d|python scripts/\w+\.py|make"


@dataclass(frozen=True)
class Fence:
    """A fenced block of a page: its ``language``, its ``text``, and the ``line`` that it begins in."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command line that a page shows, in a block or, ``inline``, within a sentence."""

    place: str
    text: str
    inline: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


class Parsed(BaseException):
    """Ends a program as soon as its arguments are parsed; no ``except Exception`` catches it."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fences(path: Path) -> Iterator[Fence]:
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Fence(name_of(path), text[: match.start()].count("\n") + 1, match[1], match[2])


def prose(path: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def spans(path: Path) -> list[str]:
    """The inline code of a page."""
    return re.findall(r"`([^`\n]+)`", prose(path))


def commands() -> Iterator[Command]:
    for path in PAGES:
        for fence in fences(path):
            if fence.language == "bash":
                lines = fence.text.replace("\\\n", " ").splitlines()
                yield from (Command(name_of(path), line) for line in lines if line.strip())
        for span in spans(path):
            if re.match(rf"({PROGRAMS}) ", span):
                yield Command(name_of(path), span, inline=True)
    for path in YAML:
        for line in path.read_text(encoding="utf-8").splitlines():
            if found := re.match(r"^\s*#.*?((?:python (?:launch|scripts)|nfsd3d )\S* .*)$", line):
                yield Command(name_of(path), found[1])
    for path in sorted((ROOT / "scripts").glob("*.py")):
        documentation = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        for line in documentation.splitlines():
            if re.match(rf"^    ({PROGRAMS}) ", line) and "[" not in line:
                yield Command(name_of(path), line.strip())


COMMANDS = {shlex.join(shlex.split(command.text, comments=True)): command for command in commands()}
"""By their words: a command that stands in several places is checked once."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the documentation's placeholders: RUN_DIR, FILE, and every YAML file that a page shows."""
    folder = tmp_path_factory.mktemp("docs")
    run = folder / "RUN_DIR"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step-000001.json").write_text("{}")
    config = compose("nfsd", ["prompt=a red cube", "machine=cpu", "backend=torch", "prior=shapes"])
    (run / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    for path in PAGES:
        for fence in fences(path):
            if fence.language == "yaml" and (title := re.match(r"# (\w+\.yaml)\n", fence.text)):
                (folder / title[1]).write_text(fence.text, encoding="utf-8")
    (folder / "prompts.txt").write_text("a pink house\na red mushroom\n")
    return folder


@pytest.fixture
def parse_only(monkeypatch) -> None:
    """Programs end once their arguments are parsed; runs once they are composed, validated and would start."""
    for name in ("parse_args", "parse_intermixed_args"):
        parse_args = getattr(argparse.ArgumentParser, name)

        def parse(self, args=None, namespace=None, parse_args=parse_args):
            parse_args(self, args, namespace)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, name, parse)
    monkeypatch.setattr(preflight, "check", lambda config, resume=None, **where: locate("shapes", None))
    for module in ("launch", "main"):
        monkeypatch.setattr(f"nfsd3d.cli.{module}.print_plan", lambda *_: None, raising=False)


@pytest.mark.parametrize("text", COMMANDS)
def test_every_command_of_the_documentation_is_understood(text, folder, parse_only, monkeypatch, capsys):
    command = COMMANDS[text]
    words = [_in_folder(word, folder) for word in shlex.split(text, comments=True)]
    if not words:
        return
    while re.match(r"[A-Z_0-9]+=", words[0]):  # environment variables
        words.pop(0)
    try:
        _check(words, command, folder, monkeypatch)
    except SystemExit as stop:
        pytest.fail(f"{command}\n{capsys.readouterr().err}exit code {stop.code}")


def _in_folder(word: str, folder: Path) -> str:
    """``word`` with the placeholders that stand for files replaced by files that exist."""
    for name in ("RUN_DIR", "prompts.txt", *(path.name for path in folder.glob("*.yaml"))):
        word = re.sub(rf"(?<![\w/]){re.escape(name)}(?!\w)", str(folder / name), word)
    return word


def _check(words: list[str], command: Command, folder: Path, monkeypatch) -> None:
    program, *arguments = words
    if program == "torchrun":  # its options, and then what python takes
        options = list(itertools.takewhile(lambda word: word.startswith("--"), arguments))
        known = {spelling for action in run.get_args_parser()._actions for spelling in action.option_strings}
        assert {option.partition("=")[0] for option in options} <= known, command
        program, arguments = "python", arguments[len(options) :]
    if program in ("python", "python3") and arguments[:2] == ["-m", "venv"]:
        return
    if program == "python" and arguments[:2] == ["-m", "nfsd3d"]:
        _check_nfsd3d(arguments[2:], command, folder)
    elif program == "python" and arguments[0] == "launch.py":
        _check_nfsd3d(arguments[1:], command, folder)
    elif program == "python":
        _check_script(arguments[0], arguments[1:], command, monkeypatch)
    elif program == "nfsd3d":
        _check_nfsd3d(arguments, command, folder)
    elif program == "make":
        _check_make(arguments, command)
    elif program == "pip":
        _check_pip(arguments, command)
    elif program == "pytest":
        _check_pytest(arguments, command)
    elif program == "docker":
        _check_docker(arguments, command)
    elif program == "eval":
        assert re.fullmatch(r"\$\(nfsd3d completion (bash|zsh|fish)\)", " ".join(arguments)), command
    elif program == "squeue":
        assert set(arguments) <= {"--me", "--array"}, command
    elif program != ".":
        pytest.fail(f"{command}: {program} is not a program that the documentation may show without a check")


def _check_nfsd3d(arguments: list[str], command: Command, folder: Path) -> None:
    if arguments[:1] and arguments[0] in command_line.COMMANDS:
        if command.inline and len(arguments) == 1:
            return
        with pytest.raises(Parsed):
            command_line.main(arguments)
        return
    if {"--help", "-h", "--version"} & set(arguments):
        assert command_line.main(arguments) == 0
        return
    if command.inline and arguments[-1:] == ["--resume"]:
        return
    if command.inline and "--resume" not in arguments and not any(word.startswith("prompt=") for word in arguments):
        arguments = [*arguments, "prompt=a red cube"]
    if "-m" in arguments:
        number = sum(1 for _ in folder.glob("sweep-*"))
        arguments = [*arguments, f"run_dir={folder / f'sweep-{number}'}"]
    assert command_line.main([*arguments, "dry_run=true"]) == 0, command


def _check_script(path: str, arguments: list[str], command: Command, monkeypatch) -> None:
    script = ROOT / path
    assert script.is_file(), command
    if command.inline and not arguments:
        return
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    monkeypatch.syspath_prepend(str(script.parent))
    with pytest.raises(Parsed):
        runpy.run_path(str(script), run_name="__main__")


def _check_make(arguments: list[str], command: Command) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE))
    for word in arguments:
        variable, assigned, _ = word.partition("=")
        assert variable in (variables if assigned else targets), f"{command}: make knows no {word}"


def _check_pip(arguments: list[str], command: Command) -> None:
    assert arguments[0] == "install", command
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for before, word in itertools.pairwise(["", *arguments]):
        assert before != "-c" or (ROOT / word).is_file(), command
        assert "==" not in word or word in constraints, f"{command}: constraints.txt has another version"


def _check_pytest(arguments: list[str], command: Command) -> None:
    markers = {marker.partition(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    for before, word in itertools.pairwise(["", *arguments]):
        assert before != "-m" or word in markers, command
        assert not word.startswith("tests/") or (ROOT / word).exists(), command


def _check_docker(arguments: list[str], command: Command) -> None:
    if arguments[0] == "run":
        assert re.search(r"prompt=|--help", command.text), command
        return
    assert arguments[0] == "build", command
    file = ROOT / arguments[arguments.index("-f") + 1]
    known = re.findall(r"^ARG (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    for before, word in itertools.pairwise(arguments):
        assert before != "--build-arg" or word.partition("=")[0] in known, command


def test_commands_were_found_in_every_kind_of_file():
    assert len(COMMANDS) > 80
    places = {command.place.split("/")[0] for command in COMMANDS.values()}
    assert {"README.md", "CONTRIBUTING.md", "docs", "configs", "scripts"} <= places


PYTHON = [fence for path in PAGES for fence in fences(path) if fence.language == "python"]


@pytest.mark.parametrize("fence", PYTHON, ids=lambda fence: f"{fence.page}:{fence.line}")
def test_every_python_example_compiles_and_its_imports_exist(fence):
    for node in ast.walk(ast.parse(fence.text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nfsd3d":
            assert hasattr(nfsd3d, node.attr), node.attr


@pytest.mark.parametrize(
    "fence",
    [fence for path in PAGES for fence in fences(path) if fence.language in ("yaml", "json")],
    ids=lambda fence: f"{fence.page}:{fence.line}",
)
def test_every_yaml_example_is_yaml(fence):
    assert yaml.safe_load(fence.text)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    found: dict[str, int] = {}
    result = set()
    for heading in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        count = found[slug] = found.get(slug, -1) + 1
        result.add(f"{slug}-{count}" if count else slug)
    return result


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^()\s]+)\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in HISTORY], ids=name_of)
def test_every_path_that_a_page_names_exists(page):
    pattern = r"(?:nfsd3d|configs|docker|docs|scripts|tests)/[\w./-]+"
    named = [span for span in spans(page) if re.fullmatch(pattern, span)]
    if page.parent.is_relative_to(ROOT / "nfsd3d"):
        named += [span for span in spans(page) if re.fullmatch(r"nfsd3d/[\w./-]+", span)]
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.fixture(scope="module")
def settings() -> set[str]:
    """The dotted keys of every setting, and of every group of settings."""
    keys: set[str] = set()

    def collect(values: dict[str, object], prefix: str = "") -> None:
        for name, value in values.items():
            keys.add(prefix + name)
            if isinstance(value, dict):
                collect(value, f"{prefix}{name}.")

    for generator in ("nerf", "latent", "image"):
        overrides = ["prompt=a red cube", "machine=cpu", "backend=torch", "prior=shapes", f"generator={generator}"]
        collect(compose("nfsd", overrides).to_dict())
    return keys | set(known_keys())  # with those of plug-ins


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in HISTORY], ids=name_of)
def test_every_setting_that_a_page_names_exists(page, settings):
    groups = "machine|backend|distill|prior|prompts|generator|cameras|train|export"
    named = [match[1] for span in spans(page) if (match := re.fullmatch(rf"((?:{groups})\.[a-z_0-9.]+)(?:=.*)?", span))]
    assert [name for name in named if name not in settings and not name.endswith(".py")] == []


def test_the_architecture_names_every_package():
    page = ROOT / "docs" / "architecture.md"
    packages = {path.parent.name for path in (ROOT / "nfsd3d").glob("*/__init__.py")}
    assert {f"`{name}`" for name in packages} - set(re.findall(r"^\| (`\w+`) \|", prose(page), re.MULTILINE)) == set()


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "docs").glob("*.md") if f"({path.name})" not in index] == ["README.md"]


def test_the_index_pairs_scripts_with_their_subcommands():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pairs = re.findall(r"`python scripts/(\w+)\.py[^`]*` \| `nfsd3d ([\w-]+)", index)
    assert len(pairs) > 5
    for script, subcommand in pairs:
        assert SUBCOMMAND_OF_SCRIPT.get(script, script.replace("_", "-")) == subcommand


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 220


def test_the_keys_of_threestudio_have_settings_here():
    text = (ROOT / "docs/threestudio.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    named = [re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)`", row[1]) for row in rows]
    keys = {key for found in named for key in found}
    assert len(keys) > 45 and keys <= {*known_keys()}
