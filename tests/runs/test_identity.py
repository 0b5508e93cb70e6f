"""A run uses its own checkpoints only, and names settings that were edited since they were saved."""

import shutil
from pathlib import Path

import pytest
from tiny_runs import OFF, changed

from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.runs import checkpoints, identity
from nfsd3d.runs.checkpoint_file import write
from nfsd3d.runs.files import write_text
from nfsd3d.train.run import train_and_export

TWO_STEPS = {"train.steps": 2, "train.checkpoint_every": 1, "train.keep_checkpoints": 9}
OLD = Path(__file__).parents[1] / "data/runs-0.1.0/latent"


@pytest.fixture
def finished(configure_2d, tmp_path, tiny_prior, console):
    """(name, settings) -> a finished run of two steps in the folder of that name, and its configuration."""

    def run(name, **settings):
        config = configure_2d(run_dir=tmp_path / name, **OFF, **TWO_STEPS, **settings)
        return train_and_export(config, console=console), config

    return run


pytestmark = pytest.mark.parametrize("kind", ["latent"])


def copy(source, target, step):
    for suffix in ("json", "safetensors"):
        name = f"checkpoints/step-{step:06d}.{suffix}"
        shutil.copy(source / name, target / name)


def test_another_runs_checkpoint_is_passed_over_in_one_line(finished, console, capsys):
    (run_dir, config), (other, _) = finished("mine"), finished("other", seed=7)
    expected = checkpoints.newest(run_dir)
    copy(other, run_dir, 2)
    capsys.readouterr()
    assert train_and_export(config, resume=run_dir, console=console) == run_dir
    (line,) = capsys.readouterr().err.splitlines()
    assert "step-000002.json belongs to another run" in line and line.endswith("step 1 is used instead")
    repeated = checkpoints.newest(run_dir)
    assert repeated.steps == 2 and repeated.header["run"] == expected.header["run"]
    assert all((repeated.tensors[name] == value).all() for name, value in expected.tensors.items())
    copy(other, run_dir, 2)
    with pytest.raises(InputError, match=r"belongs to another run; there are: 0, 1"):
        checkpoints.at_step(run_dir, 2)


def test_all_checkpoints_of_another_run_do_not_replace_a_runs_own(finished):
    (run_dir, _), (other, _) = finished("mine"), finished("other", seed=7)
    shutil.copytree(other / "checkpoints", run_dir / "checkpoints", dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"no intact checkpoint .*belongs to another run.*start the run anew"):
        checkpoints.newest(run_dir)


@pytest.mark.parametrize("what", ["copied", "moved", "without its id"])
def test_a_directory_that_is_copied_or_moved_stays_the_same_run(finished, tmp_path, console, what):
    run_dir, config = finished("mine")
    place, run = tmp_path / "place", identity.read(run_dir)
    shutil.copytree(run_dir, place) if what == "copied" else run_dir.rename(place)
    if what == "without its id":
        (place / identity.NAME).unlink()
    longer = changed(config, {"train.steps": 3, "run_dir": str(place)})
    train_and_export(longer, resume=place, console=console)
    assert run is not None and identity.read(place) == run == checkpoints.newest(place).header["run"]


def test_a_run_of_an_earlier_version_has_no_id_and_keeps_having_none(finished, tmp_path, capsys):
    shutil.copytree(OLD, tmp_path / "old")
    newest = checkpoints.newest(tmp_path / "old")
    assert identity.read(tmp_path / "old") is None and "run" not in newest.header
    other, _ = finished("other")
    later = tmp_path / "old/checkpoints/step-999999.json"
    other_newest = checkpoints.newest(other)
    write(later, other_newest.tensors, run=other_newest.header["run"])
    assert checkpoints.newest(tmp_path / "old").steps == newest.steps
    assert "step-999999.json belongs to another run" in capsys.readouterr().err


def test_settings_that_were_edited_since_are_named_and_overrides_are_not(finished, console, capsys):
    run_dir, config = finished("mine")
    edited = changed(config, {"train.steps": 3, "seed": 5, "export.report": True})
    write_text(run_dir / "config.yaml", edited.to_yaml())
    train_and_export(changed(edited, {"train.steps": 4}), resume=run_dir, console=console)
    (line,) = capsys.readouterr().err.splitlines()
    assert "changed in config.yaml: seed=5 (trained with 0)" in line and "steps" not in line and "report" not in line
    train_and_export(changed(edited, {"train.steps": 5}), resume=run_dir, console=console)
    assert capsys.readouterr().err == ""


def test_a_long_list_of_edited_settings_is_cut(finished):
    _, config = finished("mine")
    trained = identity.settings(config)
    edited = Config.from_dict({**config.to_dict(), "prompt": "a blue cube", "negative_prompt": "", "seed": 1})
    assert identity.changes(trained, edited, edited) == (
        'prompt="a blue cube" (trained with "a red cube"), negative_prompt="" (trained with "dull"), '
        "seed=1 (trained with 0)"
    )
    assert identity.changes(trained, config, edited) is None
    more = changed(edited, {"train.batch_size": 2, "train.steps": 9})
    assert str(identity.changes(trained, more, more)).endswith("and 2 more")
