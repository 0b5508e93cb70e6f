"""An Optuna study in a journal file, which several processes may share, on a network file system too.

Optuna's lock on the journal orders single entries. What takes several (to begin a trial, to take up that of a dead
process) is ordered by the caller.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import optuna
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial, TrialState

from nfsd3d.errors import InputError
from nfsd3d.tune.search_space import Dimension
from nfsd3d.tune.tuning import Record

NAME = "tune"
JOURNAL = "study.journal"
REASON = "reason"


class Study:
    """The study in ``folder``, created if there is none.

    Trials are proposed by the tree-structured Parzen estimator, seeded by their number: what one process proposes does
    not depend on interruptions. ``warmup`` is the step before which nothing is pruned.

    Raises:
        InputError: the journal is damaged.
    """

    def __init__(self, folder: Path, *, maximize: bool, warmup: int) -> None:
        optuna.logging.set_verbosity(logging.WARNING)
        path = str((folder / JOURNAL).absolute())  # a relative link could not be followed, and its lock never expires
        _repair(path)
        try:
            self._study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(path)),
                pruner=MedianPruner(n_warmup_steps=warmup),
                study_name=NAME,
                direction="maximize" if maximize else "minimize",
                load_if_exists=True,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # whatever the damage leads to
            raise InputError(f"{path}: is no journal of Optuna's, or damaged; begin another search") from error

    def begin(self) -> int:
        """Begins a trial; returns its number."""
        return self._study.ask().number

    def values(self, number: int, dimensions: Sequence[Dimension]) -> dict[str, object]:
        """The values of a running trial by name; those that it has not yet are proposed."""
        self._study.sampler = TPESampler(seed=Random(number).getrandbits(32))  # neighbouring seeds are alike
        trial = self._running(number)
        return {dimension.name: _suggest(trial, dimension) for dimension in dimensions}

    def report(self, number: int, values: Mapping[int, float]) -> None:
        """Notes the values of a running trial by step, each once."""
        trial, reported = self._running(number), self._frozen(number).intermediate_values
        for step, value in values.items():
            if step not in reported:
                trial.report(value, step)

    def should_prune(self, number: int) -> bool:
        """Whether the trial's best value so far is worse than the median of the others at its last step."""
        return self._running(number).should_prune()

    def complete(self, number: int, value: float) -> None:
        """Ends a trial with the value of its objective."""
        self._study.tell(number, value)

    def end(self, number: int, reason: str, *, pruned: bool) -> None:
        """Ends a trial without a value: it was ``pruned``, which the sampler counts as bad, or has failed."""
        self._running(number).set_user_attr(REASON, reason)
        self._study.tell(number, state=TrialState.PRUNED if pruned else TrialState.FAIL)

    def records(self) -> list[Record]:
        """All trials."""
        return [_record(trial) for trial in self._study.get_trials(deepcopy=False)]

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def _running(self, number: int) -> Trial:
        """The trial as `optuna.Study.ask` returned it, perhaps to a process that has died."""
        return Trial(self._study, self._frozen(number)._trial_id)


def _record(trial: FrozenTrial) -> Record:
    state = trial.state.name.lower()
    value = trial.value if state == "complete" else None  # a pruned trial has its last report as value
    return Record(trial.number, state, value, dict(trial.params), str(trial.user_attrs.get(REASON, "")))


def _suggest(trial: Trial, dimension: Dimension) -> object:
    name, low, high, step, log = dimension.name, dimension.low, dimension.high, dimension.step, dimension.log
    if dimension.choices:
        return trial.suggest_categorical(name, dimension.choices)
    if dimension.whole:
        return trial.suggest_int(name, int(low), int(high), step=int(step or 1), log=log)
    return trial.suggest_float(name, low, high, step=step, log=log)


def _repair(path: str) -> None:
    """Removes a last line without an end, which a full disk leaves: Optuna would append to it and read neither."""
    if not os.path.exists(path):
        return
    lock = JournalFileSymlinkLock(path)
    lock.acquire()
    try:
        with open(path, "r+b") as stream:
            content = stream.read()
            if not content.endswith(b"\n"):
                stream.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()
