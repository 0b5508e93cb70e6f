"""A run's own file names its files by absolute paths, and so resumes from any folder."""

import pytest

from nfsd3d.config.compose import load_run_config
from nfsd3d.runs.absolute_paths import with_absolute_paths
from nfsd3d.train.run import train_and_export


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The working directory, with a folder and two files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for name in ("a.safetensors", "b:1.safetensors"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ("model", "{}/model"),
        ("./model/../model", "{}/model"),
        ("owner/name", "owner/name"),
        ("a.safetensors", "{}/a.safetensors"),
        ("a.safetensors:0.8", "{}/a.safetensors:0.8"),
        ("b:1.safetensors:-2", "{}/b:1.safetensors:-2"),
        (["a.safetensors:0.8", "none.safetensors:1"], ["{}/a.safetensors:0.8", "none.safetensors:1"]),
    ],
)
def test_what_is_there_is_named_by_its_absolute_path(configure, places, given, expected):
    config = configure()
    prior = config.to_dict()["prior"] | {"model": given if isinstance(given, str) else None, "lora": given}
    found = with_absolute_paths(config.replace(prior=prior)).to_dict()["prior"]
    whole = [text and text.format(places) for text in ([expected] if not isinstance(expected, list) else expected)]
    assert found["lora"] == (whole if isinstance(expected, list) else whole[0])
    assert found["model"] == (whole[0] if isinstance(given, str) else None)


def test_a_home_folder_is_written_out(configure, places, monkeypatch):
    monkeypatch.setenv("HOME", str(places))
    assert with_absolute_paths(configure(source_run="~/model")).source_run == f"{places}/model"


@pytest.mark.usefixtures("tiny_prior")
def test_a_run_names_its_source_by_an_absolute_path_and_is_resumed_as_it_is(configure, console, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = train_and_export(configure(run_dir="first"), console=console)
    run_dir = train_and_export(configure(run_dir="second", source_run="first"), console=console)
    config = load_run_config(run_dir)
    assert config.source_run == str(tmp_path / first)
    written = (run_dir / "config.yaml").read_bytes()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train_and_export(load_run_config(tmp_path / run_dir), resume=tmp_path / run_dir, console=console)
    assert (tmp_path / run_dir / "config.yaml").read_bytes() == written
