"""Old spellings of settings work and are noticed once, on the command line, in YAML and in finished runs."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import nfsd3d
from nfsd3d.cli.options import RENAMED_OPTIONS, current_options
from nfsd3d.config import renamed
from nfsd3d.config.compose import compose, load_run_config
from nfsd3d.config.renamed import RENAMED, current_overrides, with_current_names
from nfsd3d.config.schema import known_keys
from nfsd3d.errors import InputError

ROOT = Path(nfsd3d.__file__).parent.parent
SETTLED = ["prompt=x", "machine=cpu", "backend=numba", "prior=shapes"]
OLD_AND_NEW = sorted(RENAMED.items())


@pytest.fixture(autouse=True)
def unnoticed():
    """Each test is a process that has printed no notice yet."""
    renamed.print_once.cache_clear()


def notices(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]


def in_group(group: str, name: str, value: object) -> str:
    return yaml.safe_dump({"defaults": ["nfsd", "_self_"], group: {name: value}})


def test_old_names_are_no_settings_and_new_ones_are():
    keys = set(known_keys())
    assert not keys & {*RENAMED} and keys >= set(RENAMED.values())


@pytest.mark.parametrize(("old", "new"), OLD_AND_NEW)
def test_an_old_key_on_the_command_line(old, new, capsys):
    assert compose("nfsd", [*SETTLED, f"{old}=512"]) == compose("nfsd", [*SETTLED, f"{new}=512"])
    (line,) = notices(capsys)
    assert line.startswith(f"note: {old} is now called {new}")
    assert current_overrides([f"++{old}=512"]) == [f"++{new}=512"]


@pytest.mark.parametrize(("old", "new"), OLD_AND_NEW)
def test_an_old_key_in_a_users_yaml(old, new, tmp_path, capsys):
    group, name = old.split(".")
    mine = tmp_path / "mine.yaml"
    mine.write_text(in_group(group, name, 512))
    assert compose(mine, SETTLED) == compose("nfsd", [*SETTLED, f"{new}=512"])
    assert len(notices(capsys)) == 1
    # The command line wins, whichever name it uses, and so does the file over what it inherits.
    for spelling in (old, new):
        assert compose(mine, [*SETTLED, f"{spelling}=1024"]) == compose("nfsd", [*SETTLED, f"{new}=1024"])
    mine.write_text(in_group(group, name, 512).replace("nfsd", "lowmem"))
    assert compose(mine, SETTLED) == compose("lowmem", [*SETTLED, f"{new}=512"])
    mine.write_text(yaml.safe_dump({"defaults": ["nfsd", "_self_"], group: {name: 512, new.split(".")[1]: 256}}))
    with pytest.raises(InputError, match=f"{old}=512: is the old name of {new}=256; remove {old}"):
        compose(mine, SETTLED)


@pytest.mark.parametrize(("old", "new"), OLD_AND_NEW)
def test_an_old_key_in_a_users_group(old, new, tmp_path, capsys):
    group, name = old.split(".")
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_text(f"defaults: [cpu, _self_]\n{name}: 512\n")
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text("defaults: [nfsd, _self_]\n")
    choices = ["prompt=x", "backend=numba", "prior=shapes", f"{group}=mine"]
    assert compose(experiment, choices) == compose("nfsd", [*SETTLED, f"{new}=512"])
    assert len(notices(capsys)) == 1


@pytest.mark.parametrize(("old", "new"), OLD_AND_NEW)
def test_an_old_key_in_a_finished_run(old, new, tmp_path, capsys):
    config = compose("nfsd", [*SETTLED, f"{new}=512"])
    group, name = old.split(".")
    values = yaml.safe_load(config.to_yaml())
    values[group][name] = values[group].pop(new.split(".")[1])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert load_run_config(tmp_path) == config.replace(run_dir=str(tmp_path))
    assert len(notices(capsys)) == 1
    for spelling in (old, new):
        changed = load_run_config(tmp_path, [f"{spelling}=1024"]).to_dict()
        assert changed[group][new.split(".")[1]] == 1024


def test_current_names_are_unchanged(capsys):
    values = {"machine": {"rays_per_chunk": 5}, "seed": 3, "defaults": ["nfsd"]}
    assert with_current_names(values) == values
    assert current_overrides(["machine.rays_per_chunk=5"]) == ["machine.rays_per_chunk=5"]
    assert notices(capsys) == []


@pytest.mark.parametrize(("old", "new"), sorted(RENAMED_OPTIONS.items()))
def test_old_options_of_the_subcommands(old, new, capsys):
    assert current_options(["RUN_DIR", old, f"{old}=5", "--json", "x"]) == ["RUN_DIR", new, f"{new}=5", "--json", "x"]
    (line,) = notices(capsys)
    assert line.startswith(f"note: {old} is now called {new}")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["machine.pixels_at_once=512"], ["machine.pixels_at_once is now called machine.rays_per_chunk"]),
        (["-m", "machine.pixels_at_once=512,1024"], ["machine.pixels_at_once is now called machine.rays_per_chunk"]),
        (["--config", "mine.yaml"], ["machine.rows_at_once is now called machine.unet_batch_size"]),
        (["--config", "mine.yaml", "-m", "seed=1,2"], ["machine.rows_at_once is now called machine.unet_batch_size"]),
    ],
)
def test_a_process_prints_one_line_of_notice(arguments, expected, tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults: [nfsd, _self_]\nmachine: {rows_at_once: 2}\n")
    command = [sys.executable, str(ROOT / "launch.py"), *arguments, "prompt=a red cube", "dry_run=true", *SETTLED[1:]]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert len(lines) == 1 and lines[0].startswith(f"note: {expected[0]}")
    assert "dry run" in result.stdout
