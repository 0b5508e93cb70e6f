"""The progress of a run over its first start, resumptions and retries."""

import time
from dataclasses import asdict, dataclass, field

from nfsd3d.callbacks.steering import Steering
from nfsd3d.runs.checkpoint_file import Checkpoint, Record
from nfsd3d.runs.metrics import Metrics
from nfsd3d.runs.summary import SmallerChunks, Summary
from nfsd3d.train.divergence import History


@dataclass
class Progress:
    """The progress of a run, summed over the first start and all resumptions.

    ``steps`` finished steps; ``metrics`` of the last logged step; ``evaluations`` the NFE so far; ``earlier_seconds``
    the time until the last resumption, and ``started`` when that was. ``retries`` counts the returns to a sound
    checkpoint after a divergence, and ``history`` is what its limits depend on. ``training`` is false until the model
    is loaded. ``smaller_chunks`` are the chunk sizes that the out-of-memory retry has led to. ``steered`` lists the
    changes by which the run was steered, each with the number of steps before it (`nfsd3d.callbacks.steering`).
    ``training_seconds`` is the time until the last step, once that is done.
    """

    steps: int = 0
    metrics: Metrics = field(default_factory=lambda: Metrics())
    earlier_seconds: float = 0.0
    evaluations: int = 0
    retries: int = 0
    history: History = field(default_factory=History)
    smaller_chunks: SmallerChunks | None = None
    steered: list[dict[str, float | None]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    training: bool = False
    training_seconds: float | None = None

    def start(self) -> None:
        """Begins training: the time of loading and compiling before it does not count."""
        self.training, self.started = True, time.monotonic()

    @property
    def steering(self) -> Steering:
        """How the next step is steered."""
        if not self.steered:
            return Steering()
        return Steering(**{name: value for name, value in self.steered[-1].items() if name != "step"})  # type: ignore[arg-type]

    @property
    def seconds(self) -> float:
        """Time that the run has taken."""
        return self.earlier_seconds + time.monotonic() - self.started

    def record(self) -> Record:
        """What a checkpoint keeps of the progress; see :meth:`resumed`."""
        return {
            "seconds": self.seconds,
            "network_evaluations": self.evaluations,
            "metrics": self.metrics,
            "retries": self.retries,
            "history": asdict(self.history),
            "steered": list(self.steered),
        }

    @classmethod
    def after(cls, summary: Summary) -> "Progress":
        """The progress of a run that begins with another one, whose time and NFE are its own; or with nothing."""
        return cls(earlier_seconds=summary.get("seconds", 0.0), evaluations=summary.get("network_evaluations", 0))

    @classmethod
    def resumed(cls, checkpoint: Checkpoint) -> "Progress":
        """The progress of a run that is resumed from a checkpoint."""
        record = checkpoint.record
        progress = cls(earlier_seconds=record["seconds"], evaluations=record["network_evaluations"])
        progress.retries = record.get("retries", 0)
        progress.steered = list(record.get("steered", []))
        progress.go_back(checkpoint)
        return progress

    def go_back(self, checkpoint: Checkpoint) -> None:
        """Takes what belongs to a checkpoint's state; time, NFE, retries and steering go on."""
        self.steps, self.metrics = checkpoint.steps, checkpoint.record["metrics"]
        self.history = History(**checkpoint.record.get("history", {}))
