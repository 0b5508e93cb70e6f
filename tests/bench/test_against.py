"""The benchmark beside another revision: turns, ratios, memory, and errors of the trees' commands."""

import subprocess
from pathlib import Path

import pytest

from nfsd3d.bench import against
from nfsd3d.bench.tree import ROOT, Tree
from nfsd3d.cli.bench import main
from nfsd3d.errors import InputError

# A tree whose commands take the time and report the numbers that its file "speed" says.
FILES = {
    "scripts/bench.py": """
import json, pathlib, sys
ms = float(pathlib.Path("speed").read_text())
target = pathlib.Path(sys.argv[sys.argv.index("--json") + 1])
target.parent.mkdir()
step = {"steps_per_second": 1e3 / ms, "milliseconds": {"render": ms / 4, pathlib.Path.cwd().name: ms}}
target.write_text(json.dumps({"step": step}))
with open("../log", "a") as log:
    print(pathlib.Path.cwd().name, file=log)
""",
    "launch.py": """
import pathlib, sys, time
run_dir = pathlib.Path(next(word for word in sys.argv if word.startswith("run_dir=")).removeprefix("run_dir="))
run_dir.mkdir()
time.sleep(float(pathlib.Path("speed").read_text()) / 1e3)
(run_dir / "metrics.jsonl").write_text("{}")
if "train.steps=1000" in sys.argv:
    time.sleep(600)
""",
    "scripts/export_mesh.py": """
import pathlib, sys
assert (pathlib.Path(sys.argv[1]) / "metrics.jsonl").is_file()
memory = b"x" * int(float(pathlib.Path("speed").read_text()) * 1e6)
""",
}


@pytest.fixture
def trees(tmp_path, monkeypatch) -> Path:
    """Our tree, in the folder "ours", and another one, which is returned and takes three times as long."""
    for name, speed in (("ours", 100.0), ("theirs", 300.0)):
        for path, text in FILES.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (tmp_path / name / "speed").write_text(str(speed))
    monkeypatch.setattr(against, "ROOT", tmp_path / "ours")
    return tmp_path / "theirs"


def test_trees_take_turns_and_common_parts_are_compared(trees):
    calls = []
    figures = against.measure(("step",), trees, against.Settings(3, 1, 1), lambda: calls.append(None))
    assert [(figure.name, figure.unit) for figure in figures] == [("step", "ms"), ("step: render", "ms")]
    assert all(figure.ratio == pytest.approx(3) and len(figure.ours) == 3 for figure in figures)
    order = (trees.parent / "log").read_text().split()
    assert order == ["theirs", "ours", "ours", "theirs", "theirs", "ours", "ours", "theirs"] and len(calls) == 8


def test_time_and_memory_are_those_of_the_process(trees):
    settings = against.Settings(1, 1, 1)
    (start,) = against.measure(("start",), trees, settings)
    # Their processes would go on for ten minutes after the first step.
    assert start.name == "start" and 0.1 <= start.ours[0] < 60 and 0.3 <= start.theirs[0] < 60
    seconds, memory = against.measure(("export",), trees, settings)
    assert (seconds.unit, memory.unit) == ("s", "MB")
    assert 190 < memory.theirs[0] - memory.ours[0] < 210


def test_the_demo_is_what_each_trees_makefile_runs(trees):
    for folder, name in ((trees, "nfsd"), (trees.parent / "ours", "quick")):
        command = f'demo:\n\t$(BIN)/python launch.py --config configs/{name}.yaml prompt="$(PROMPT)"\n'
        (folder / "Makefile").write_text(command)
        launch = (folder / "launch.py").read_text()
        check = f"assert sys.argv[2] == 'configs/{name}.yaml' and not any('steps' in word for word in sys.argv)\n"
        (folder / "launch.py").write_text(
            launch.replace("import pathlib, sys, time\n", f"import pathlib, sys, time\n{check}")
        )
    figures = {figure.name: figure for figure in against.measure(("demo",), trees, against.Settings(1, 60, 1))}
    assert figures["demo"].ours[0] >= 0.1 and figures["demo"].theirs[0] >= 0.3


def test_the_demo_of_this_tree_is_an_experiment_of_it():
    assert (ROOT / Tree(ROOT, 1, "--against").demo_config).is_file()


def test_a_ratio_has_the_range_of_its_rounds():
    figure = against.Figure("step", "ms", (1.0, 2.0, 4.0), (3.0, 8.0, 8.0))
    assert figure.ratio == 4 and figure.ratio_range == (2, 4)


def test_a_command_that_fails_is_named_with_its_last_line(trees):
    (trees / "scripts/bench.py").write_text("import sys; print('one'); sys.exit('no such thing')")
    with pytest.raises(InputError, match=r"^--against: scripts/bench\.py .* failed in .*theirs: no such thing$"):
        against.measure(("step",), trees, against.Settings(1, 1, 1))
    (trees / "launch.py").write_text("raise SystemExit('not today')")
    with pytest.raises(InputError, match=r"launch\.py .* failed in .*theirs: not today$"):
        against.measure(("start",), trees, against.Settings(1, 1, 1))


def test_a_revision_is_checked_out_and_removed(trees, tmp_path, monkeypatch, capsys):
    repository = tmp_path / "ours"

    def git(*arguments):
        own = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", *own, *arguments], cwd=repository, check=True, capture_output=True)

    git("init")
    (repository / "speed").write_text("400")
    git("add", ".")
    git("commit", "-m", "slow")
    (repository / "speed").write_text("100")  # not committed
    target = tmp_path / "numbers.json"
    assert main(["--against", "HEAD", "--only", "step", "--rounds", "1", "--json", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "4.00" in printed and "400 ms" in printed and '"rounds": 1' in target.read_text()
    listed = subprocess.run(["git", "worktree", "list"], cwd=repository, check=True, capture_output=True, text=True)
    assert len(listed.stdout.splitlines()) == 1
    with pytest.raises(InputError, match=r"^--against nowhere: no such revision of .*; give a commit, tag or branch$"):
        main(["--against", "nowhere"])
    with pytest.raises(InputError, match="--prior"):
        main(["--against", "HEAD", "--prior", "sd21"])
