"""Property-based tests of what users hand in: it is accepted, or refused on one line with exit code 2; nothing else.

The suite runs a part; ``make fuzz`` runs thousands of cases (the hypothesis profile "fuzz").
"""

import io
import json
import os
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_models import build_model

from nfsd3d.cli.main import main
from nfsd3d.config.experiments import choices_of
from nfsd3d.config.schema import known_keys

CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
settings.register_profile("suite", max_examples=8, deadline=None, suppress_health_check=CHECKS, derandomize=True)
settings.register_profile("fuzz", max_examples=650, deadline=None, suppress_health_check=CHECKS, print_blob=True)
settings.load_profile(os.environ.get("NFSD3D_FUZZ_PROFILE", "suite"))

CHOSEN = ["prior=shapes", "machine=cpu", "backend=torch"]
PROMPT = "prompt=a red cube"
IGNORED = ("deprecated", "renamed", "(auto:", "read as", "damaged", "dropped")
"""Words of notices, which may stand before the error."""


def answer(*arguments: str, notices: bool = False) -> tuple[int, str]:
    """Exit code and stderr of a command line, which must be accepted, or refused on one line.

    ``notices``: further lines may stand before the error's.
    """
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(list(arguments))
    lines = [line for line in err.getvalue().splitlines() if line.strip()]
    assert "Traceback" not in err.getvalue()
    if code == 0:
        return code, err.getvalue()
    assert code == 2, f"exit code {code}: {err.getvalue()}"
    assert lines and lines[-1].startswith("error: ") and len(lines[-1]) > len("error: x: y"), lines
    if not notices:
        assert [line for line in lines[:-1] if not any(word in line for word in IGNORED)] == []
    return code, lines[-1]


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    """All files lie in a folder of their own."""
    former = Path.cwd()
    folder = tmp_path_factory.mktemp("fuzz")
    os.chdir(folder)
    yield folder
    os.chdir(former)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30)
NUMBERS = st.one_of(
    st.integers(-(10**9), 10**9).map(str),
    st.floats().map(str),
    st.sampled_from(["1e400", "-0", "0x10", "1_000", "inf", "nan", ".5", "010", "1:30", "1e-320"]),
)
GRAMMAR = st.text("[]{}(),:=\"'\\$~+@#&*!|<>%?- \t0a.", max_size=12)
WORDS = st.sampled_from([*"abcdefg", "null", "None", "true", "off", "auto", "???", "", "nfsd", "glob(*)", "range(1,3)"])
VALUES = st.one_of(
    NUMBERS, GRAMMAR, WORDS, TEXT, st.lists(NUMBERS, max_size=4).map(lambda found: f"[{','.join(found)}]")
)
GROUPS = ["prior", "machine", "backend", "generator", "distill", "train", "export", "cameras", "hydra/launcher"]
KEYS = st.one_of(
    st.sampled_from(sorted(known_keys())),
    st.sampled_from([key for key in sorted(known_keys()) if key.startswith(("train.", "generator.", "distill."))]),
    st.sampled_from(GROUPS),
    st.sampled_from(["hydra.run.dir", "hydra.job.name", "hydra.mode", "hydra", "defaults", "train", "nfsd", ""]),
    st.builds(str.__add__, st.sampled_from(sorted(known_keys())), st.text("abc.0_", min_size=1, max_size=3)),
)
OVERRIDES = st.one_of(
    st.builds(lambda sign, key, value: f"{sign}{key}={value}", st.sampled_from(["", "", "", "+", "++"]), KEYS, VALUES),
    st.builds(lambda group: f"{group[0]}={group[1]}", st.sampled_from([(g, c) for g in GROUPS for c in choices_of(g)])),
    KEYS.map(lambda key: f"~{key}"),
    TEXT,
    GRAMMAR,
)
OPTIONS = st.sampled_from(["--cfg", "--config", "--resume", "--help", "--version", "job", "all", "sds", "vsd", "--x"])


@given(st.lists(st.one_of(OVERRIDES, OVERRIDES, OPTIONS), max_size=5), st.booleans())
def test_command_lines(words, chosen):
    assume(not any(word.split("=")[0].strip() in ("bench", "doctor") for word in words))
    answer(*CHOSEN * chosen, PROMPT, *words, "dry_run=true")


@given(st.sampled_from(["export", "render", "evaluate", "check-mesh", "compare"]), st.lists(st.one_of(TEXT, OPTIONS)))
def test_subcommands(command, words):
    assume("--help" not in words and not any(word in ("-h", "--dry-run") for word in words))
    answer(command, "no such place", *words)


@given(OVERRIDES.filter(lambda line: "interval" not in line))
def test_sweeps(override):
    assume("launcher" not in override and "sweeper" not in override)
    answer("-m", *CHOSEN, PROMPT, "seed=0,1", override, "dry_run=true", notices=True)


@given(TEXT | st.text(max_size=200))
def test_prompts(text):
    answer(*CHOSEN, f"prompt={text}", "dry_run=true")


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, GRAMMAR)
NESTED = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
DEFAULTS = st.lists(
    st.one_of(st.sampled_from(["nfsd", "_self_", "train/default", "x", "/prior: shapes", "hydra: x"]), NESTED),
    max_size=3,
)


def _tree(keys: list[tuple[str, object]]) -> dict[str, object]:
    tree: dict[str, object] = {}
    for key, value in keys:
        *groups, name = key.split(".")
        place = tree
        for group in groups:
            inner = place.setdefault(group, {})
            place = inner if isinstance(inner, dict) else {}
        place[name] = value
    return tree


@given(
    st.one_of(DEFAULTS, st.just(["nfsd", "_self_"]), NESTED),
    st.lists(st.tuples(st.sampled_from(sorted(known_keys())), NESTED), max_size=4),
    st.dictionaries(TEXT, NESTED, max_size=2),
)
def test_experiment_files(defaults, values, more):
    path = Path("mine.yaml")
    path.write_text(yaml.safe_dump({"defaults": defaults, **_tree(values), **more}, allow_unicode=True), "utf-8")
    answer("--config", str(path), *CHOSEN, PROMPT, "dry_run=true")


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """``content`` with some of its bytes changed, cut off, repeated, or put in."""
    places = st.integers(0, max(len(content) - 1, 0))

    def change(found: tuple[str, int, int, bytes]) -> bytes:
        how, first, second, put = found
        start, end = sorted((first, second))
        return {
            "put": content[:start] + put + content[start:],
            "replace": content[:start] + put + content[start + len(put) :],
            "cut": content[:start],
            "drop": content[:start] + content[end:],
            "repeat": content[:end] + content[start:],
            "zeros": content[:start] + bytes(end - start) + content[end:],
        }[how]

    ways = st.sampled_from(["put", "replace", "cut", "drop", "repeat", "zeros"])
    return st.tuples(ways, places, places, st.binary(min_size=1, max_size=8)).map(change)


SAMPLE = b"""defaults:
  - nfsd
  - override generator: latent
  - _self_
train:
  steps: 30
  resolution: [[0, 16], [0.5, 32]]
  regularizers: {sparsity: 1.0}
prompt: "a red ${seed} cube"
seed: 3
"""


@given(damaged(SAMPLE))
def test_damaged_experiment_files(content):
    Path("damaged.yaml").write_bytes(content)
    answer("--config", "damaged.yaml", *CHOSEN, PROMPT, "dry_run=true")


@pytest.fixture(scope="module")
def run_dir(elsewhere):
    """A finished run with a tiny NeRF."""
    small = ["generator.hidden_width=8", "generator.occupancy_resolution=8", "generator.samples_per_ray=16"]
    grid = ["levels=2", "log2_entries=6", "base_resolution=4", "growth=2"]
    quiet = ["export.mesh=false", "export.turntable=false", "export.report=false", "train.tensorboard=false"]
    steps = ["train.steps=2", "train.batch_size=1", "train.resolution=8", "train.checkpoint_every=1"]
    encoding = [f"generator.encoding.{value}" for value in grid]
    assert main([*CHOSEN, PROMPT, *small, *encoding, *quiet, *steps, "run_dir=run"]) == 0
    return Path("run")


def _copy_with(run_dir: Path, name: str, content: bytes) -> Path:
    copy = Path("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run_dir, copy)
    (copy / name).write_bytes(content)
    return copy


@given(st.data(), st.sampled_from(["step-000001.json", "step-000002.json", "step-000002.safetensors"]))
def test_damaged_checkpoints(run_dir, data, name):
    original = (run_dir / "checkpoints" / name).read_bytes()
    copy = _copy_with(run_dir, f"checkpoints/{name}", data.draw(damaged(original)))
    answer("render", str(copy), "--views", "1", "--size", "16", notices=True)


@given(st.data(), st.sampled_from(["config.yaml", "summary.json", "metrics.jsonl"]))
def test_damaged_files_of_a_run(run_dir, data, name):
    copy = _copy_with(run_dir, name, data.draw(damaged((run_dir / name).read_bytes())))
    answer("--resume", str(copy), "dry_run=true", notices=True)


@st.composite
def images(draw: st.DrawFn) -> bytes:
    """A small image of a random mode and format, possibly damaged."""
    mode, kind = draw(
        st.sampled_from(
            [
                *[(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
                *[(mode, "TIFF") for mode in ("1", "L", "RGB", "RGBA", "CMYK", "I", "F", "LAB", "I;16")],
                *[(mode, "JPEG") for mode in ("L", "RGB", "CMYK")],
                ("RGB", "BMP"),
                ("P", "GIF"),
                ("RGBA", "WEBP"),
            ]
        )
    )
    size = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind)
    content = stream.getvalue()
    return draw(st.one_of(st.just(content), damaged(content)))


@given(st.one_of(images(), st.binary(max_size=60)))
def test_source_images(content):
    Path("source.png").write_bytes(content)
    arguments = ["generator=latent", "source_image=source.png", "source_prompt=a blue cube"]
    answer("--config", "dds_2d", *CHOSEN, PROMPT, *arguments, "dry_run=true", notices=True)


@pytest.fixture(scope="module")
def model(elsewhere):
    """A small model in the diffusers layout."""
    return build_model(Path("model"), "kl", "epsilon")


@given(st.data())
def test_model_folders(model, data):
    copy = Path("changed model")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(model, copy, copy_function=os.link)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    content = path.read_bytes()
    path.unlink()
    how = data.draw(st.sampled_from(["missing", "damaged", "value"]))
    if how == "damaged":
        path.write_bytes(data.draw(damaged(content[:4000])) + content[4000:])
    elif how == "value" and path.suffix == ".json":
        values = json.loads(content)
        assume(isinstance(values, dict) and values)
        values[data.draw(st.sampled_from(sorted(values)))] = data.draw(NESTED)
        path.write_text(json.dumps(values))
    answer("prior=sd15", f"prior.model={copy}", "machine=cpu", "prompt=a red cube", "dry_run=true", notices=True)
