"""YAML files that cannot be used are one line with exit code 2, before anything is made."""

import os
from pathlib import Path

import pytest

from nfsd3d.cli import launch
from nfsd3d.cli.main import main
from nfsd3d.config.compose import compose
from nfsd3d.config.yaml_files import read_yaml, texts_in
from nfsd3d.errors import InputError

SETTLED = ["machine=cpu", "backend=numba", "prior=shapes"]
BEGIN = "defaults: [nfsd, _self_]\n"

# name: the content of x.yaml (or of several files), and what the message says
FILES = {
    "text for a list": ("defaults: nfsd", "x.yaml: defaults must be a list, such as defaults: [nfsd, _self_]"),
    "a mapping for a list": ("defaults: {a: nfsd}", "x.yaml: defaults must be a list"),
    "no list": ("defaults:", "x.yaml: defaults must be a list"),
    "an empty list": ("defaults: []", "x.yaml: defaults must be a list"),
    "itself": ("defaults: [x, _self_]", "files name each other in a circle"),
    "a circle": ({"x": "defaults: [y, _self_]", "y": "defaults: [x, _self_]"}, "files name each other in a circle"),
    "a number in the list": ("defaults: [nfsd, 5]", "defaults"),
    "two keys in an item": ("defaults: [nfsd, {a: b, c: d}]", "defaults"),
    "an empty item": ("defaults: [nfsd, {}]", "defaults"),
    "nothing in the list": ("defaults: [nfsd, null]", "defaults"),
    "itself twice": ("defaults: [nfsd, _self_, _self_]", "_self_"),
    "a missing file": ("defaults: [nfsdd, _self_]", "x.yaml: nfsdd.yaml: no such file (did you mean nfsd"),
    "a missing choice": (
        "defaults: [nfsd, override distill: nfsdd, _self_]",
        "distill=nfsdd: no such choice (did you m",
    ),
    "a long name": (f"defaults: [{'n' * 300}, _self_]", "File name too long"),
    "a longer name": (f"defaults: [nfsd, cameras: {'n' * 5000}, _self_]", "File name too long"),
    "brackets": (f"{BEGIN}a: {'[' * 200}{']' * 200}", "nested deeper than"),
    "many brackets": (f"{BEGIN}a: {'[' * 20000}{']' * 20000}", "nested too deeply"),
    "many braces": (f"{BEGIN}a: {'{a: ' * 5000}1{'}' * 5000}", "nested too deeply"),
    "a broken bracket": (f"{BEGIN}a: [", "cannot be read as YAML"),
    "an unfinished reference": (f"{BEGIN}prompt: '${{'", "prompt=${: not a complete interpolation; write \\${ for"),
    "a reference to nothing": (f"{BEGIN}prompt: '${{a}}'", "prompt: Interpolation key 'a' not found"),
    "a reference to itself": (f"{BEGIN}prompt: '${{prompt}}'", "prompt"),
    "two references in a circle": (f"{BEGIN}prompt: '${{negative_prompt}}'\nnegative_prompt: '${{prompt}}'", "prompt"),
    "nested references": (f"{BEGIN}prompt: '{'${' * 500}a{'}' * 500}'", "over 32 interpolations in one value"),
    "a null key": (f"{BEGIN}null: 5", "line 2: the key null is not text; put it in quotes"),
    "an empty key": (f"{BEGIN}? \n: 5", "the key an empty or nested value is not text"),
    "a number as a key": (f"{BEGIN}train: {{5: 5}}", "the key 5 is not text"),
    "true as a key": (f"{BEGIN}train: {{yes: 5}}", "the key yes is not text"),
    "a list as a key": (f"{BEGIN}? [a, b]\n: 5", "is not text"),
    "a dotted key": (f"{BEGIN}train.steps: 5", "line 2: train.steps: a key has no dots; write train: {steps: ...}"),
    "a dotted key in a group": (f"{BEGIN}train: {{learning_rate.network: 1}}", "write learning_rate: {network: ...}"),
    "a key twice": (f"{BEGIN}seed: 1\nseed: 2", "line 3: seed is given twice"),
    "a list": ("- a", "holds no settings"),
    "text": ("a red cube", "holds no settings"),
    "a number": ("5", "holds no settings"),
    "nothing": ("", "has no defaults list"),
    "two documents": (f"{BEGIN}---\na: 1", "cannot be read as YAML"),
    "a tab": (f"{BEGIN}train:\n\tsteps: 5", "cannot be read as YAML"),
    "a NUL": (f"{BEGIN}prompt: a\0b", "cannot be read as YAML"),
    "bad UTF-8": (b"defaults: [nfsd, _self_]\nprompt: \xff", "cannot be read as YAML"),
    "UTF-16": ((BEGIN + "prompt: a").encode("utf-16"), "cannot be read as YAML"),
    "a huge number": (f"{BEGIN}seed: {'9' * 5000}", "cannot be read as YAML"),
    "a large number": (f"{BEGIN}seed: 1{'0' * 400}", "seed="),
    "an infinite number": (f"{BEGIN}seed: .inf", "seed="),
    "a date": (f"{BEGIN}seed: 2020-01-01", "seed=2020-01-01: must be a whole number"),
    "a tag": (f"{BEGIN}seed: !!binary aGk=", "!!binary is not a plain value; leave the tag out"),
    "a mark of its own": (f"{BEGIN}seed: !mine 5", "!mine is not a plain value"),
    "an equals sign": (f"{BEGIN}prompt: =", "is not a plain value"),
    "an alias of nothing": (f"{BEGIN}prompt: *a", "cannot be read as YAML"),
    "an alias of itself": (f"{BEGIN}train: &a {{steps: *a}}", "nested"),
    "aliases of aliases": (
        BEGIN + "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{f'*a{i}, ' * 10}]\n" for i in range(12)),
        "has over 20,000 values",
    ),
    "references of references": (
        BEGIN + "a0: x\n" + "".join(f"a{i + 1}: '{f'${{a{i}}}' * 10}'\n" for i in range(12)) + "prompt: ${a12}",
        "over 32 interpolations",
    ),
    "a large file": (f"{BEGIN}#{'x' * 1_000_001}", "more than 1,000,000 bytes"),
    "an odd header": (f"# @package\n{BEGIN}", "header"),
    "a group of the wrong kind": (f"{BEGIN}train: 5", "train"),
    "a list for a group": (f"{BEGIN}train: [5]", "x.yaml: a list where a group of settings is wanted"),
    "a group's file with a list": (
        {"x": "defaults: [nfsd, override cameras: y, _self_]", "cameras/y": "- 5"},
        "y.yaml: holds no settings",
    ),
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, empty; training is replaced."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "_train", lambda *_, **__: None)
    return tmp_path


def refusal(arguments: list[str], capsys) -> str:
    """The one line with which a command line ends that exits with 2."""
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and len(line) > 20
    return line


@pytest.mark.parametrize("case", FILES.values(), ids=FILES.keys())
def test_a_file_that_cannot_be_used_is_one_line(folder, capsys, case):
    files, message = case
    for name, content in (files if isinstance(files, dict) else {"x": files}).items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    prompt = [] if "prompt:" in str(files) else ["prompt=a red cube"]
    for way in ([], ["-m"]):
        assert message in refusal(["--config", "x.yaml", *prompt, *SETTLED, *way], capsys)
    assert not (folder / "outputs").exists()


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".yaml", "folder.yaml", "pipe.yaml", "a\0b", "/dev/zero", " "])
def test_what_is_no_file_is_one_line(folder, capsys, name):
    (folder / "folder.yaml").mkdir()
    os.mkfifo(folder / "pipe.yaml")
    for option in ("--config", "--resume"):
        refusal([option, name], capsys)


def test_a_file_without_read_permission_is_one_line(folder, capsys, monkeypatch):
    (folder / "x.yaml").write_text(BEGIN)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    line = refusal(["--config", "x.yaml", "prompt=a red cube"], capsys)
    assert "--config x.yaml: cannot be read as YAML" in line and "Permission denied" in line


def test_a_byte_order_mark_and_windows_line_ends_are_read(folder):
    (folder / "x.yaml").write_bytes(b"\xef\xbb\xbfdefaults: [nfsd, _self_]\r\nseed: 5\r\n")
    assert compose(folder / "x.yaml", ["prompt=x", *SETTLED]).seed == 5


def test_aliases_and_numbers_are_read_as_hydra_reads_them(folder):
    text = f"{BEGIN}a: &a {{b: 1e3, c: yes, d: 2020-01-01}}\ne: *a\nf: {{<<: *a, b: 010}}\n"
    (folder / "x.yaml").write_text(text)
    values = read_yaml(folder / "x.yaml")
    assert values["a"] == values["e"] == {"b": 1000.0, "c": True, "d": "2020-01-01"}
    assert values["f"] == {"b": 8, "c": True, "d": "2020-01-01"}
    assert list(texts_in(values["a"], "a")) == [("a.d", "2020-01-01")]
    with pytest.raises(InputError, match="no settings"):
        (folder / "x.yaml").write_text("[]")
        read_yaml(folder / "x.yaml")
