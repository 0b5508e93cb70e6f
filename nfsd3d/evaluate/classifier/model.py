"""The image classifier of the world of shapes: a small residual network with one head per attribute.

It is trained on clean true renders only (``python scripts/train_classifier.py``). It shares neither images, seed nor
architecture with the embedded prior. ``calibration`` measures its accuracy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfsd3d.errors import InputError
from nfsd3d.shapes.world.grammar import COLORS, PATTERNS, VIEWS, Composition
from nfsd3d.shapes.world.objects import OBJECTS

SIZE = 64
AZIMUTHS = 24
SYMMETRIC_PATTERNS = ("striped", "checkered")
"""Patterns whose two colours cover the same area: "red and white" and "white and red" look the same."""

WEIGHTS = Path(__file__).parent / "weights" / "classifier.safetensors"
_WIDTHS = (24, 48, 96, 160)
_HEADS = {
    "object": len(OBJECTS),
    "color": len(COLORS),
    "second": len(COLORS),
    "pattern": len(PATTERNS),
    "view": len(VIEWS),
    "azimuth": AZIMUTHS,
}
_OBJECT, _COLOR, _PATTERN = ({name: index for index, name in enumerate(names)} for names in (OBJECTS, COLORS, PATTERNS))


@dataclass(frozen=True)
class Prediction:
    """The predictions for B images, as log-probabilities: ``object`` [B,16], the main ``color`` and the ``second`` one
    [B,10] (valid for patterned objects only), ``pattern`` [B,4], the word of the ``view`` [B,4] and the camera's
    ``azimuth`` [B,24] in bins around 0, 15, 30 ... degrees (valid for objects with a front only).
    """

    object: Tensor
    color: Tensor
    second: Tensor
    pattern: Tensor
    view: Tensor
    azimuth: Tensor

    def __len__(self) -> int:
        return self.object.shape[0]

    def __getitem__(self, index: slice | Tensor) -> "Prediction":
        """The prediction on some of the images."""
        return Prediction(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def pooled(self) -> "Prediction":
        """One prediction [1,...] for all images, as views of one object: the mean of the log-probabilities.

        View and azimuth differ between images, so their pooled values are meaningless.
        """
        means = {field.name: getattr(self, field.name).mean(0, keepdim=True) for field in fields(self)}
        return Prediction(**{name: F.log_softmax(mean, dim=-1) for name, mean in means.items()})

    def objects(self) -> list[str]:
        """[B] the likeliest object."""
        return _named(self.object, list(OBJECTS))

    def colors(self) -> list[str]:
        """[B] the likeliest main colour."""
        return _named(self.color, list(COLORS))

    def patterns(self) -> list[str]:
        """[B] the likeliest pattern."""
        return _named(self.pattern, list(PATTERNS))

    def views(self) -> list[str]:
        """[B] the likeliest word of the view."""
        return _named(self.view, list(VIEWS))

    def azimuths_deg(self) -> Tensor:
        """[B] the likeliest azimuth in degrees, in [-180, 180): the mean direction around the likeliest bin."""
        best = self.azimuth.argmax(dim=-1)
        near = (best[:, None] + torch.arange(-1, 2)) % AZIMUTHS
        weight = self.azimuth.gather(1, near).exp()
        offset = (weight * torch.arange(-1.0, 2.0)).sum(1) / weight.sum(1)
        return ((best + offset) * (360 / AZIMUTHS) + 180) % 360 - 180

    def log_likelihood(self, compositions: Sequence[Composition]) -> Tensor:
        """[B,N] the log-probability of each composition: object, pattern, and colours given the pattern.

        Colours of ``SYMMETRIC_PATTERNS`` count in either order.
        """
        return torch.stack([self._log_likelihood(composition) for composition in compositions], dim=-1)

    def _log_likelihood(self, composition: Composition) -> Tensor:
        score = self.object[:, _OBJECT[composition.object]] + self.pattern[:, _PATTERN[composition.pattern]]
        main = _COLOR[composition.color]
        if composition.pattern == "plain":
            return score + self.color[:, main]
        second = _COLOR[composition.second]
        colors = self.color[:, main] + self.second[:, second]
        if composition.pattern in SYMMETRIC_PATTERNS:
            colors = torch.logaddexp(colors, self.color[:, second] + self.second[:, main])
        return score + colors

    def right(self, compositions: Sequence[Composition]) -> dict[str, Tensor]:
        """[B] whether ``object``, ``color`` and ``pattern`` of each image are those of its composition.

        The main colour of ``SYMMETRIC_PATTERNS`` may be either of the two.
        """
        allowed = [(c.color, c.second) if c.pattern in SYMMETRIC_PATTERNS else (c.color,) for c in compositions]
        named = zip(self.objects(), self.colors(), self.patterns(), compositions, allowed, strict=True)
        rows = [(o == c.object, color in colors, pattern == c.pattern) for o, color, pattern, c, colors in named]
        return dict(zip(("object", "color", "pattern"), torch.tensor(rows).unbind(1), strict=True))


def _named(scores: Tensor, names: list[str]) -> list[str]:
    return [names[index] for index in scores.argmax(dim=-1).tolist()]


class _Residual(nn.Module):
    """A residual block: two 3x3 convolutions and a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layers(x))


class Classifier(nn.Module):
    """A residual network over 64x64 images with one linear head per attribute."""

    def __init__(self) -> None:
        """Untrained; ``Classifier.load`` gives the trained one."""
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((3, *_WIDTHS), _WIDTHS, strict=False):
            down = nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False)
            layers += [down, nn.BatchNorm2d(width), nn.ReLU(), _Residual(width)]
        self.trunk = nn.Sequential(*layers)
        # The 4x4 map is flattened, not pooled: the position of a part reveals the view.
        self.neck = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(_WIDTHS[-1] * 16, 192), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(192, count) for name, count in _HEADS.items()})

    def forward(self, images: Tensor) -> Prediction:
        """The prediction on images [B,3,H,W] in [0,1]; other sizes than 64x64 are resized.

        Raises ValueError for another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be [B,3,H,W], got {tuple(images.shape)}")
        if images.shape[2:] != (SIZE, SIZE):
            images = F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
        features = self.neck(self.trunk((images * 2 - 1).contiguous(memory_format=torch.channels_last)))
        return Prediction(**{name: F.log_softmax(head(features).float(), dim=-1) for name, head in self.heads.items()})

    @torch.no_grad()
    def classify(self, images: Tensor, batch: int = 256) -> Prediction:
        """``forward`` of any number of images, without gradient."""
        parts = [self(part) for part in images.split(batch)]
        return Prediction(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Prediction)})

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> "Classifier":
        """The trained classifier, on the CPU.

        Raises:
            InputError: no weights at ``path``.
        """
        from safetensors.torch import load_file

        if not path.exists():
            raise InputError(
                f"{path}: the classifier's weights are not there; make them with scripts/train_classifier.py"
            )
        classifier = cls()
        classifier.load_state_dict({name: value.float() for name, value in load_file(path).items()}, strict=False)
        return classifier.eval().requires_grad_(False)
