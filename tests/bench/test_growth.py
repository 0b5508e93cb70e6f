"""How time and memory grow: what is run, what is read from it, and the chart."""

import json
import xml.etree.ElementTree as ET

import pytest

from nfsd3d.bench import growth
from nfsd3d.cli.bench import main
from nfsd3d.errors import InputError

# A tree whose steps take 10 ms for each view and pixel of the side, and a millisecond for each sample on the diagonal.
FILES = {
    "launch.py": """
import json, pathlib, sys
given = dict(word.split("=", 1) for word in sys.argv if "=" in word)
run_dir = pathlib.Path(given["run_dir"])
run_dir.mkdir()
if "source_run" in given:
    assert (pathlib.Path(given["source_run"]) / "metrics.jsonl").is_file()
step = 0.01 * int(given.get("train.batch_size", 4)) * int(given.get("train.resolution", 64))
step += 1e-3 * int(given.get("generator.samples_per_ray", 64))
with open(run_dir / "metrics.jsonl", "w") as file:
    for number in range(int(given["train.steps"])):
        begun = number * step + (5 if number else 0)  # the first step compiles
        print(json.dumps({"step": number + 1, "seconds": begun + step, "samples_per_ray": 7.0}), file=file)
with open("log", "a") as log:
    print(given["train.steps"], *sorted(set(given) - {"prompt", "run_dir", "train.steps", "machine"}), file=log)
""",
    "scripts/export_mesh.py": """
import pathlib, sys, time
assert (pathlib.Path(sys.argv[1]) / "metrics.jsonl").is_file()
cells = int(sys.argv[sys.argv.index("--resolution") + 1])
memory = b"x" * (cells * 400_000)
time.sleep(cells / 1000)
""",
}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for path, text in FILES.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setattr(growth, "ROOT", tmp_path)
    monkeypatch.setattr(growth, "CELLS", (64, 512))
    return tmp_path


def test_each_size_is_measured_in_its_own_process(tree, tmp_path, capsys):
    numbers, chart = tmp_path / "numbers.json", tmp_path / "growth.svg"
    assert main(["bench", "--growth", "--steps", "6", "--json", str(numbers), "--chart", str(chart)][1:]) == 0
    views, pixels, samples, table, cells = json.loads(numbers.read_text())["growth"]
    for size in views["sizes"]:
        assert size["milliseconds"] == pytest.approx(640 * size["value"] + 64)
        assert size["samples"] == 7 * size["value"] * 64**2
    for size in pixels["sizes"]:
        assert size["milliseconds"] == pytest.approx(10 * size["value"] + 64)
        assert size["samples"] == 7 * size["value"] ** 2
    assert [size["milliseconds"] for size in samples["sizes"]] == pytest.approx([2592, 2624, 2688, 2816])
    assert {round(size["milliseconds"]) for size in table["sizes"]} == {2624}
    small, large = cells["sizes"]
    assert 64 <= small["milliseconds"] < large["milliseconds"] and large["milliseconds"] >= 512
    assert large["megabytes"] - small["megabytes"] == pytest.approx(448 * 0.4, rel=0.1)
    scene, *rest = (tree / "log").read_text().splitlines()
    assert scene.startswith(f"{growth.SCENE_STEPS} ") and len(rest) == growth.count() - 3
    for line in rest:  # the scene's own sizes are trained from the start
        own = "samples_per_ray" in line or "log2_entries" in line
        assert line.startswith(f"{growth.SCENE_STEPS + 6 if own else 6} ") and ("source_run" in line) != own
    drawn = ET.parse(chart).getroot()
    titles = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text") if text.get("class") == "title"]
    assert titles[:2] == ["ms by views of a step", "MB by views of a step"] and len(titles) == 10
    assert "train.batch_size" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--chart", "--json"])
def test_a_file_that_cannot_be_written_is_found_before_the_measurement(tree, tmp_path, monkeypatch, option):
    monkeypatch.setattr(growth, "measure", None)
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x", tmp_path):
        with pytest.raises(InputError, match=rf"^{option} {path}: cannot be written \("):
            main(["--growth", option, str(path)])


def test_a_command_that_fails_is_named(tree):
    (tree / "launch.py").write_text("import sys; sys.exit('no such thing')")
    with pytest.raises(InputError, match=r"^--growth: launch\.py .*: no such thing$"):
        growth.measure(2, 1)
