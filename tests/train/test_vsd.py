"""Whole runs of variational score distillation, with the prior that the package ships."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from tiny_runs import final_tensors

from nfsd3d.runs.metrics import read_metrics
from nfsd3d.train import task
from nfsd3d.train.build import build_parts
from nfsd3d.train.interrupts import Interrupted
from nfsd3d.train.memory.chunking import ChunkSizes
from nfsd3d.train.plan import plan_at
from nfsd3d.train.run import train_and_export
from nfsd3d.train.step import step_loss

VSD = {
    "distill.method": "vsd",
    "distill.lora_learning_rate": 1e-2,
    "train.steps": 3,
    "train.log_every": 1,
    "train.checkpoint_every": 3,
    "train.preview_every": 3,
    "export.mesh": False,
    "export.turntable": False,
    "export.report": False,
}


def without_times(run_dir):
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in ("seconds", "steps_per_second")} for line in lines]


def test_an_interrupted_run_resumes_to_the_same_result(configure, tmp_path, console, monkeypatch):
    straight = train_and_export(configure(**VSD, run_dir=tmp_path / "straight"), console=console)
    config = configure(**VSD, run_dir=tmp_path / "interrupted")
    original, count = task.step_loss, iter(range(1, 100))

    def signalling(*arguments, **options):
        if next(count) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(task, "step_loss", signalling)
        with pytest.raises(Interrupted):
            train_and_export(config, console=console)
    run_dir = train_and_export(config, resume=tmp_path / "interrupted", console=console)
    done, expected = final_tensors(run_dir), final_tensors(straight)
    assert done.keys() == expected.keys()
    assert all(torch.equal(done[name], expected[name]) for name in expected)
    assert without_times(run_dir) == without_times(straight)
    assert any(name.startswith("lora.") and "lora_B" in name for name in done)
    assert all(line["lora_loss"] > 0 for line in without_times(run_dir))
    files = {path.suffix for path in (run_dir / "checkpoints").iterdir()}
    assert files == {".json", ".safetensors"}  # nothing pickled


def test_a_step_costs_three_evaluations_and_one_trained(configure):
    config = configure(**VSD)
    parts = build_parts(config)
    lora = parts.distillation.lora
    before = {name: value.clone() for name, value in lora.state_dict().items()}
    plan = plan_at(config.train, 0.0)
    result = step_loss(parts.generator, parts.prior, parts.bank, parts.distillation, parts.ranges, plan, parts.rng)
    assert result.evaluations == config.train.batch_size * (3 + 1)
    lora.optimizer.step()
    assert any(not torch.equal(value, before[name]) for name, value in lora.state_dict().items())
    assert not any(value.requires_grad for value in result.metrics.tensors().values())


@pytest.mark.parametrize("size", [None, 1])
def test_its_network_is_called_on_the_plans_chunks(configure, size):
    config = configure(**VSD)
    parts, sizes = build_parts(config), []
    parts.prior.denoiser.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    plan = replace(plan_at(config.train, 0.0), chunks=ChunkSizes(unet_batch_size=size))
    step_loss(parts.generator, parts.prior, parts.bank, parts.distillation, parts.ranges, plan, parts.rng)
    views = config.train.batch_size
    # The prior's two predictions for each view; the LoRA network's prediction, and its training.
    assert sizes == ([2 * views, views, views] if size is None else [1] * (4 * views))


def test_all_images_of_a_batch_train_one_lora_network(configure_2d):
    config = configure_2d(**{"distill.method": "vsd", "distill.lora_learning_rate": 1e-2, "train.batch_size": 3})
    parts = build_parts(config)
    lora = parts.distillation.lora
    plan = plan_at(config.train, 0.0)
    values = next(iter(parts.generator.parameters()))
    step = (parts.generator, parts.prior, parts.bank, parts.distillation, parts.ranges, plan)
    result = step_loss(*step, parts.rng)
    result.loss.backward()
    lora.optimizer.step()
    assert result.evaluations == 3 * (3 + 1)
    assert values.grad.flatten(1).norm(dim=1).gt(0).all()
    assert not values.grad[0].allclose(values.grad[1])  # each lora has a gradient of its own
    learnt = {name: value.clone() for name, value in lora.state_dict().items()}

    # A network that was also trained on other images is different.
    others = build_parts(config)
    images = next(iter(others.generator.parameters()))
    images.data[1:] = images.data[1:].flip(0) + 0.3
    step_loss(others.generator, others.prior, others.bank, others.distillation, others.ranges, plan, others.rng)
    others.distillation.lora.optimizer.step()
    state_dict = others.distillation.lora.state_dict()
    assert any(not torch.equal(value, learnt[name]) for name, value in state_dict.items())
