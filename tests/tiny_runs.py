"""Tiny runs for tests: a tiny NeRF, and an analytic prior in place of the diffusion model."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from analytic_prior import AnalyticPrior
from rich.console import Console
from torch import Tensor

from nfsd3d.config.compose import compose
from nfsd3d.config.schema import Config
from nfsd3d.jobs import controller
from nfsd3d.jobs.engines.base import Ended
from nfsd3d.jobs.perform import Command, perform
from nfsd3d.prior.architectures import ARCHITECTURES, Architecture
from nfsd3d.prior.schedule import VariancePreserving
from nfsd3d.runs import checkpoints
from nfsd3d.settings.prompt_texts import FINE_VIEW_WORDS, VIEW_WORDS

TINY = {
    "generator.encoding": {"levels": 2, "features": 2, "log2_entries": 8, "base_resolution": 4, "growth": 2.0},
    "generator.hidden_width": 8,
    "generator.occupancy_resolution": 8,
    "generator.occupancy_interval": 3,
    "generator.occupancy_warmup": 4,
    "generator.samples_per_ray": 24,
    "train.steps": 6,
    "train.batch_size": 2,
    "train.resolution": 16,
    "train.preview_every": 3,
    "train.preview_size": 16,
    "train.log_every": 2,
    "train.checkpoint_every": 2,
    "train.tensorboard": False,
    "export.resolution": 32,
    "export.texture_size": 64,
    "export.turntable_frames": 8,
    "export.turntable_size": 16,
}

OFF = {"export.mesh": False, "export.turntable": False, "export.report": False}

Configure = Callable[..., Config]


class TinyPrior(AnalyticPrior):
    """A mixture of two grey images: the prompt means the brighter one."""

    def __init__(self) -> None:
        """8x8 images, 100 timesteps."""
        means = torch.stack([torch.full((3, 8, 8), 0.6), torch.full((3, 8, 8), -0.6)])
        bright, even, dark = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]), torch.tensor([0.1, 0.9])
        prompts = {"": even, "dull": dark}
        for view in (*VIEW_WORDS, *FINE_VIEW_WORDS):
            prompts |= dict.fromkeys((f"a red cube, {view}", f"a red cube, sharp, {view}"), bright)
            prompts |= dict.fromkeys((f"a blue cube, {view}", f"a red cube, blurry, {view}"), dark)
        super().__init__(means, torch.tensor([0.2, 0.2]), prompts, VariancePreserving(torch.linspace(0.999, 0.01, 100)))


@pytest.fixture
def console() -> Console:
    """Keeps what is printed, without a terminal."""
    return Console(file=io.StringIO(), width=80)


def final_tensors(run_dir: Path) -> dict[str, Tensor]:
    """The tensors of a run's newest checkpoint."""
    return dict(checkpoints.newest(run_dir).tensors)


@pytest.fixture(scope="session")
def base_config() -> Config:
    """The experiment nfsd on the CPU with everything tiny."""
    overrides = ["prompt=a red cube", "negative_prompt=dull", "machine=cpu", "backend=torch", "prior=shapes"]
    return changed(compose("nfsd", overrides), TINY)


@pytest.fixture
def configure(base_config: Config, tmp_path: Path) -> Configure:
    """(changes by dotted key) -> the tiny configuration with its run in an empty folder."""

    def configured(**changes: Any) -> Config:
        run_dir = Path(changes.pop("run_dir", tmp_path / "run"))
        run_dir.mkdir(exist_ok=True)
        return changed(base_config, {"run_dir": str(run_dir), **changes})

    return configured


@pytest.fixture(params=["latent", "image"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each of the generators that make images."""
    return request.param


@pytest.fixture
def configure_2d(kind: str, tmp_path: Path) -> Configure:
    """(changes by dotted key) -> a tiny configuration of images with its run in an empty folder."""
    overrides = ["prompt=a red cube", "negative_prompt=dull", "machine=cpu", "prior=shapes", f"generator={kind}"]
    tiny = {key: value for key, value in TINY.items() if key.startswith("train.") and key != "train.resolution"}
    base = changed(compose("nfsd", [*overrides, "prompts.view_dependent=true"]), {**tiny, "train.batch_size": 3})

    def configured(**changes: Any) -> Config:
        run_dir = Path(changes.pop("run_dir", tmp_path / "run"))
        run_dir.mkdir(exist_ok=True)
        return changed(base, {"run_dir": str(run_dir), **changes})

    return configured


@pytest.fixture
def tiny_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs use :class:`TinyPrior`."""
    monkeypatch.setattr("nfsd3d.train.build.build_prior", lambda config: TinyPrior())


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a narrow architecture in Stable Diffusion's layout."""
    full, channels = ARCHITECTURES["sd21"], {"block_out_channels": (32, 32, 64, 64)}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    unet = {**full.unet, **channels, "attention_head_dim": 8, "cross_attention_dim": 32}
    small = Architecture(unet, {**full.text_encoder, **text}, full.prediction_type, {**full.vae, **channels})
    monkeypatch.setitem(ARCHITECTURES, "sd21", small)
    return "sd21"


def changed(config: Config, changes: dict[str, Any]) -> Config:
    """The configuration with some settings, by their dotted keys, replaced."""
    values = config.to_dict()
    for key, value in changes.items():
        *branches, leaf = key.split(".")
        node = values
        for branch in branches:
            node = node[branch]
        node[leaf] = value
    return Config.from_dict(values)


class _InThisProcess:
    """An engine that runs jobs in this process, where fixtures can replace the training."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._waiting: list[tuple[Path, int]] = []

    def submit(self, folder: Path, numbers: Sequence[int]) -> None:
        self._waiting += [(folder, number) for number in numbers]

    def ended(self, timeout: float) -> list[Ended]:
        folder, number = self._waiting.pop(0)
        return [Ended(number, perform(self._command, folder, number, engine="test"))]

    def stop(self) -> None:
        self._waiting.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


@pytest.fixture
def jobs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of sweeps run in this process, one after the other."""
    monkeypatch.setattr(controller, "load_engine", lambda settings, command: _InThisProcess(command))
