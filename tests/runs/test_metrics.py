"""metrics.jsonl."""

import errno
import io
import json
from pathlib import Path

import pytest

from nfsd3d.errors import InputError
from nfsd3d.runs.metrics import MetricsWriter, read_metrics, series


def test_lines_are_on_disk_at_once(tmp_path):
    with MetricsWriter(tmp_path, 0) as writer:
        writer.write(4, {"opacity": 0.25})
        assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 4, "opacity": 0.25}]


def test_numbers_that_json_cannot_hold_are_null(tmp_path):
    with MetricsWriter(tmp_path, 0) as writer:
        writer.write(0, {"grad_norm": float("nan"), "opacity": float("inf")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 0, "grad_norm": None, "opacity": None}


def test_a_resumed_run_replaces_what_it_does_again(tmp_path):
    with MetricsWriter(tmp_path, 0) as writer:
        for step in range(6):
            writer.write(step, {"opacity": 0.0})
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "opac')  # killed while writing
    with MetricsWriter(tmp_path, 3) as writer:
        writer.write(4, {"opacity": 1.0})
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["opacity"]) for line in lines] == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1)]


@pytest.mark.parametrize("rest", ['{"step": 1, "opac', '{"step": 1, "opac\0\0\0'])
def test_a_first_line_without_an_end_does_not_swallow_the_next(tmp_path, rest):
    (tmp_path / "metrics.jsonl").write_text(rest)
    with MetricsWriter(tmp_path, 1) as writer:
        writer.write(2, {"opacity": 1.0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 2, "opacity": 1.0}\n'


def test_names_of_version_0_1_are_read_as_current_ones(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written = [{"step": 2, "particle_loss": 0.5}, {"step": 4, "lora_loss": 0.25}, {"step": 6, "lora_loss": None}]
    path.write_text("".join(json.dumps(line) + "\n" for line in written))
    lines = read_metrics(path)
    assert lines[0] == {"step": 2, "lora_loss": 0.5}
    assert series(lines, "lora_loss") == [(2, 0.5), (4, 0.25)]


def written(folder, steps=range(1, 9)):
    with MetricsWriter(folder, 0) as writer:
        for step in steps:
            writer.write(step, {"opacity": step / 8})
    return folder / "metrics.jsonl"


def steps_of(path):
    return [line["step"] for line in read_metrics(path)]


def damage_line(number, content):
    def damage(path):
        lines = path.read_bytes().splitlines(keepends=True)
        lines[number] = content(lines[number]) if callable(content) else content
        path.write_bytes(b"".join(lines))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        damage_line(3, lambda line: line.replace(b"opacity", b"opa\xffity")),
        damage_line(3, lambda line: b"\0" * len(line)),  # with the line's end, as the next test has none
        damage_line(3, lambda line: b"\0" * (len(line) - 1) + b"\n"),
        damage_line(3, b"{\n"),
        damage_line(3, b"[4]\n"),
        damage_line(3, b'{"opacity": 1}\n'),
        damage_line(3, b'{"step": 4.0}\n'),
        damage_line(3, b'{"step": true}\n'),
        damage_line(3, b'{"step": 4, "opacity": "much"}\n'),
        damage_line(3, b'{"step": 4, "opacity": NaN}\n'),
        damage_line(3, b'{"step": 4, "opacity": 1e999}\n'),
        damage_line(3, b'{"step": ' + b"9" * 5000 + b"}\n"),
        damage_line(3, b"[" * 100_000 + b"\n"),
        damage_line(3, b'{"step": 2, "opacity": 1}\n'),
        damage_line(3, b'{"step": 94, "opacity": 1}\n'),
        damage_line(3, b"\n"),
    ],
)
def test_an_unreadable_line_is_dropped_and_told(tmp_path, capsys, damage):
    path = written(tmp_path)
    damage(path)
    left = steps_of(path)  # readers skip the same lines, and say nothing
    assert set(range(1, 9)) - set(left) <= {4, 5} and 4 not in left and capsys.readouterr().err == ""
    with MetricsWriter(tmp_path, 8, every=1) as writer:
        writer.write(9, {"opacity": 0.5})
    (warning,) = capsys.readouterr().err.splitlines()
    assert f"{path} is damaged: 1 unreadable line is dropped" in warning and "no lines" not in warning
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [*left, 9]


def resumed(folder, capsys, finished, every=1):
    """What is printed when a run is resumed after ``finished`` steps."""
    with MetricsWriter(folder, finished, every=every):
        return capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "missing"),
    [
        (lambda content: content[:20], "steps 1 to 8"),
        (lambda content: content[:70], "steps 3 to 8"),
        (lambda content: content[:-9], "step 8"),
        (lambda content: content[:90] + bytes(len(content) - 90), "steps 4 to 8"),  # as a power cut leaves it
    ],
)
def test_steps_without_a_line_are_told(tmp_path, capsys, damage, missing):
    path = written(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    (warning,) = resumed(tmp_path, capsys, 8).splitlines()
    assert warning.startswith(f"{path} is damaged: ") and warning.endswith(f"there are no lines of {missing}")


@pytest.mark.parametrize(
    ("steps", "finished", "every"),
    [((10, 20, 30), 39, 10), ((10, 20), 20, 10), ((), 9, 10), ((10, 20, 25), 29, 10), ((10, 20), 29, 1)],
)
def test_steps_that_are_not_logged_are_not_missing(tmp_path, capsys, steps, finished, every):
    """Also where the run logged more rarely before."""
    if steps:
        written(tmp_path, steps)
    assert resumed(tmp_path, capsys, finished, every) == resumed(tmp_path, capsys, 0, every) == ""


def test_a_run_without_metrics_has_none_and_a_folder_is_an_error(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"metrics\.jsonl cannot be read"):
        read_metrics(tmp_path / "metrics.jsonl")


class FullDisk(io.StringIO):
    """A file that can be opened, and not written."""

    def flush(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    close = flush


def test_a_full_disk_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "open", lambda *arguments, **options: FullDisk())
    with pytest.raises(OSError, match="No space left") as raised, MetricsWriter(tmp_path, 0) as writer:
        writer.write(1, {"opacity": 0.5})
    assert raised.value.__context__ is None
    with pytest.raises(OSError, match="No space left") as raised, MetricsWriter(tmp_path, 0):
        pass
    assert raised.value.__context__ is None
    with pytest.raises(ZeroDivisionError), MetricsWriter(tmp_path, 0):
        raise ZeroDivisionError
