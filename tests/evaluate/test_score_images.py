"""``nfsd3d evaluate`` on runs that make images."""

import json
from pathlib import Path

import pytest

import nfsd3d
from nfsd3d.cli.main import main
from nfsd3d.evaluate.classifier.model import Classifier
from nfsd3d.evaluate.score_images import score_images


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run of two steps with the embedded prior; do not change it."""
    directory = tmp_path_factory.mktemp("runs") / "snowman"
    sizes = {"train.steps": 2, "train.batch_size": 3, "train.tensorboard": False, "export.report": False}
    nfsd3d.generate("a purple snowman", "nfsd_2d", machine="cpu", prior="shapes", run_dir=directory, **sizes)
    return directory


def test_every_image_is_classified(run_dir):
    score = score_images(nfsd3d.load_run(run_dir), Classifier.load())
    assert (score.prompt, score.method, score.images) == ("a purple snowman", "nfsd", 3)
    assert all(share * 3 in (0, 1, 2, 3) for share in (score.object, score.color, score.pattern, score.retrieved))
    assert score.evaluations == 18 and score.seconds > 0 and score.memory_mb > 100


def test_the_command_prints_shares_and_no_geometry(run_dir, tmp_path, capsys):
    arguments = ["--json", str(tmp_path / "s.json"), "--sheet", str(tmp_path / "s.png")]
    assert main(["evaluate", str(run_dir), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "| nfsd | all | 3 |" in printed and "unseen true renders" in printed and "IoU" not in printed
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["images"]["nfsd"][str(run_dir)]["images"] == 3
    assert (tmp_path / "s.png").stat().st_size > 1000


def test_options_and_runs_of_scenes_do_not_apply_to_images(run_dir, tmp_path, capsys):
    assert main(["evaluate", str(run_dir), "--oracle-fit"]) == 2
    assert "--oracle-fit: fits a NeRF" in capsys.readouterr().err
    scene = nfsd3d.config.compose.compose("nfsd", ["prompt=a red cube", "machine=cpu", "prior=shapes"])
    (tmp_path / "config.yaml").write_text(scene.to_yaml())
    assert main(["evaluate", str(run_dir), str(tmp_path)]) == 2
    assert "evaluate them in two commands" in capsys.readouterr().err
