"""Common random numbers: with one seed, every method sees the same cameras, timesteps and noise."""

import io
from dataclasses import dataclass, replace

import pytest
import torch
from rich.console import Console

from nfsd3d.distill.methods import METHODS, RandomNoise
from nfsd3d.distill.types import Noising
from nfsd3d.train import step
from nfsd3d.train.run import train_and_export
from nfsd3d.train.step import fork

STEPS = 7
SUFFIXES = {"distill.better_suffix": ", sharp", "distill.worse_suffix": ", blurry"}
GENERATIVE = sorted(name for name, method in METHODS.items() if not method.needs_source)


def test_draws_from_a_fork_do_not_change_its_parent(rng):
    reference = rng.clone_state()
    torch.randn(1000, generator=fork(rng))
    fork(reference)
    assert torch.equal(torch.randn(9, generator=rng), torch.randn(9, generator=reference))
    assert not torch.equal(torch.randn(9, generator=fork(rng)), torch.randn(9, generator=fork(rng)))


def seen(config, monkeypatch):
    """The cameras, timesteps, noise (None where a method computes it) and first latents of a run's steps."""
    cameras, times, noises, begun = [], [], [], []
    sample, method = step.sample_cameras, METHODS[config.distill.method]

    def sample_cameras(*arguments):
        cameras.append(sample(*arguments))
        return cameras[-1]

    @dataclass(frozen=True)
    class Watched:
        noising: Noising

        def __call__(self, prior, z, t, contexts, rng):
            begun.append(z)
            times.append(t)
            z_t, eps = self.noising(prior, z, t, contexts, rng)
            noises.append(eps if self.noising == RandomNoise() else None)
            return z_t, eps

    def watched(method):
        then = None if method.then is None else watched(method.then)
        return replace(method, noising=Watched(method.noising), then=then)

    with monkeypatch.context() as patch:
        patch.setattr(step, "sample_cameras", sample_cameras)
        patch.setitem(METHODS, config.distill.method, watched(method))
        train_and_export(config, console=Console(file=io.StringIO()))
    return cameras, times, noises, begun[0]


@pytest.mark.parametrize("method", [name for name in GENERATIVE if name != "vsd"])
@pytest.mark.usefixtures("tiny_prior")
def test_all_methods_draw_the_same(configure, tmp_path, monkeypatch, method):
    short = {"train.steps": STEPS, "export.mesh": False, "export.turntable": False, "export.report": False, **SUFFIXES}
    runs = [
        seen(configure(**short, **{"distill.method": name, "run_dir": tmp_path / f"{index}"}), monkeypatch)
        for index, name in enumerate(["sds", method])
    ]
    check_common(*runs)


def test_vsd_draws_the_same(configure, tmp_path, monkeypatch):
    short = {"train.steps": 4, "export.mesh": False, "export.turntable": False, "export.report": False}
    runs = [
        seen(configure(**short, **{"distill.method": name, "run_dir": tmp_path / name}), monkeypatch)
        for name in ("sds", "vsd")
    ]
    check_common(*runs)


def check_common(ours, theirs):
    assert torch.equal(ours[3], theirs[3])
    for one, other in zip(ours[0], theirs[0], strict=True):
        assert torch.equal(one.camera_to_world, other.camera_to_world) and torch.equal(one.light, other.light)
    assert all(torch.equal(one, other) for one, other in zip(ours[1], theirs[1], strict=True))
    both = [pair for pair in zip(ours[2], theirs[2], strict=True) if pair[0] is not None and pair[1] is not None]
    assert all(torch.equal(one, other) for one, other in both)
