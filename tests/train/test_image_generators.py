"""Tiny runs that make images: their files, resumption, and results."""

import json
from dataclasses import replace
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from tiny_runs import final_tensors

from nfsd3d.errors import InputError, RunFailed
from nfsd3d.runs.metrics import read_metrics
from nfsd3d.runs.summary import read_summary
from nfsd3d.train import build, task
from nfsd3d.train.previews import images_of
from nfsd3d.train.run import train_and_export
from nfsd3d.train.step import step_loss

pytestmark = pytest.mark.usefixtures("tiny_prior")


def final_images(run_dir):
    return final_tensors(run_dir)["generator.values"]


def test_a_run_writes_its_images(configure_2d, kind, console):
    run_dir = train_and_export(configure_2d(), console=console)
    size = {"latent": 8, "image": 64}[kind]
    assert imageio.imread(run_dir / "image.png").shape == (2 * size, 2 * size, 3)  # three and a white one
    assert (imageio.imread(run_dir / "image.png")[size:, size:] == 255).all()
    single = [imageio.imread(run_dir / "images" / f"00{index}.png") for index in range(3)]
    assert all(image.shape == (size, size, 3) for image in single) and (single[0] != single[1]).any()
    assert sorted(path.name for path in (run_dir / "previews").iterdir()) == ["step-000003.png", "step-000006.png"]
    assert not (run_dir / "mesh").exists() and not (run_dir / "turntable.mp4").exists()

    summary = read_summary(run_dir)
    assert (summary["status"], summary["generator"], summary["mesh"]) == ("done", kind, None)
    images = ["image.png", "images/000.png", "images/001.png", "images/002.png"]
    assert summary["exported"] == [*images, "report.html"]
    lines = read_metrics(run_dir / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6] and lines[-1]["grad_norm"] > 0
    assert not {"opacity", "samples_per_ray"} & lines[-1].keys()  # images have neither
    assert "opacity" not in console.file.getvalue() and "step 6/6" in console.file.getvalue()
    page = (run_dir / "report.html").read_text()
    assert "data:image/png" in page and "<video" not in page and "opacity" not in page.split("<pre>")[0]


def test_a_seed_repeats_a_run_and_an_interrupted_one_resumes(configure_2d, tmp_path, console):
    straight = train_and_export(configure_2d(seed=5, run_dir=tmp_path / "a"), console=console)
    other = train_and_export(configure_2d(seed=6, run_dir=tmp_path / "b"), console=console)
    assert not torch.equal(final_images(straight), final_images(other))
    config = configure_2d(seed=5, run_dir=tmp_path / "c")
    train_and_export(configure_2d(seed=5, run_dir=tmp_path / "c", **{"train.steps": 6}), console=console)
    for path in (tmp_path / "c" / "checkpoints").glob("step-000006.*"):
        path.unlink()
    train_and_export(config, resume=tmp_path / "c", console=console)
    assert torch.equal(final_images(straight), final_images(tmp_path / "c"))
    with pytest.raises(InputError, match="another generator"):
        train_and_export(configure_2d(seed=5, run_dir=tmp_path / "c", **{"train.batch_size": 2}), resume=tmp_path / "c")


def test_images_become_brighter_for_a_prompt_of_brightness(configure_2d, console):
    config = configure_2d(**{"train.steps": 40, "train.learning_rate_factor": 1.0, "generator.initial_std": 0.1})
    prior = build.build_prior(config)
    before = images_of(build.build_images(config, prior), prior).mean()
    train_and_export(config, console=console)
    after = imageio.imread(Path(config.run_dir) / "images" / "000.png").mean() / 255
    assert before == pytest.approx(0.5, abs=0.05) and after > 0.6


def test_a_gradient_that_is_not_finite_ends_the_run(configure_2d, console, monkeypatch):
    def spoilt(*arguments):
        result = step_loss(*arguments)
        return replace(result, loss=result.loss * float("nan"))

    monkeypatch.setattr(task, "step_loss", spoilt)
    with pytest.raises(RunFailed, match="gradient norm is nan in the first step"):
        train_and_export(configure_2d(), console=console)


def test_the_noise_to_start_from_is_not_the_noise_that_is_added(configure_2d, kind):
    parts = build.build_parts(configure_2d(**{"generator.initial_std": 1.0, "train.resolution": 8}))
    added = torch.randn(parts.generator.values.shape, generator=torch.Generator().manual_seed(0))
    assert torch.corrcoef(torch.stack([parts.generator.values.detach().flatten(), added.flatten()]))[0, 1].abs() < 0.2


def test_images_have_the_size_asked_for(configure_2d, kind, console):
    run_dir = train_and_export(configure_2d(**{"train.resolution": 24, "train.steps": 1}), console=console)
    size = 24 if kind == "image" else 8
    assert imageio.imread(run_dir / "images" / "000.png").shape == (size, size, 3)
    assert np.isfinite(json.loads((run_dir / "summary.json").read_text())["final_metrics"]["grad_norm"])
