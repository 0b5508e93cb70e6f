"""Run directories: their names, and the checks that a new one is empty and can be written to."""

import hashlib
import itertools
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.runs import lock
from nfsd3d.runs.files import check_writable
from nfsd3d.settings.paths import user_path

OUTPUTS = Path("outputs")
OF_JOBS = frozenset({"job.json", "job.log"})
"""Files of a sweep that lie in a run's directory before the run begins."""


@contextmanager
def claimed(config: Config, name: str) -> Iterator[Config]:
    """Yields the configuration with a run directory as :func:`claim_run_dir`, which belongs to this process.

    If the block raises an error and nothing was written, the folders that were made are removed again.

    Raises:
        InputError: the directory holds files already, cannot be written to, or belongs to another process.
    """
    place = _prompt_folder(config, name) if config.run_dir is None else user_path(config.run_dir)
    # Unlike Path.is_dir, os.path.isdir is false for a name that is too long.
    made = [folder for folder in (place, *place.parents) if not os.path.isdir(folder)]
    try:
        config = claim_run_dir(config, name)
        run_dir = Path(str(config.run_dir))
        if run_dir.parent == place:
            made.insert(0, run_dir)
        with lock.owned(run_dir):
            check_unused(run_dir)  # again: another process may have been faster, and done
            yield config
    except BaseException:
        for folder in made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        raise


def _prompt_folder(config: Config, name: str) -> Path:
    return OUTPUTS / name / slug(config.prompt)


def claim_run_dir(config: Config, name: str) -> Config:
    """The configuration with a run directory that exists, is empty, and can be written to.

    Without ``run_dir`` a new one is created: ``outputs/<name>/<prompt>/<time>``, unique within a second too.

    Raises:
        InputError: the given directory holds files already, or cannot be written to.
    """
    if config.run_dir is None:
        return config.replace(run_dir=str(new_folder(_prompt_folder(config, name), "")))
    return config.replace(run_dir=str(claim_folder(user_path(config.run_dir))))


def claim_folder(path: Path) -> Path:
    """``path`` as an empty directory that can be written to, created if needed.

    Raises:
        InputError: it holds files already, or cannot be written to.
    """
    check_unused(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        check_writable(path)
    except OSError as error:
        raise InputError(f"run_dir={path}: cannot be written ({error.strerror}); choose another") from error
    return path


def check_unused(path: Path) -> None:
    """Raises `InputError` unless ``path`` is absent or an empty directory; a lock and :data:`OF_JOBS` do not count."""
    try:
        if path.is_dir() and any(
            not entry.name.startswith(lock.NAME) and entry.name not in OF_JOBS for entry in path.iterdir()
        ):
            raise InputError(f"run_dir={path}: already used; choose another, or go on with --resume {path}")
        if path.exists() and not path.is_dir():
            raise InputError(f"run_dir={path}: is a file; choose a directory")
    except OSError as error:
        raise InputError(f"run_dir={path}: cannot be read ({error.strerror}); choose another") from error


def new_folder(parent: Path, prefix: str) -> Path:
    """Creates ``parent/<prefix><time>``, with a number from 2 if that exists already.

    Raises:
        InputError: it cannot be made.
    """
    stamp = prefix + datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        path = parent / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(f"{path}: cannot be made ({error.strerror}); choose another with run_dir=PATH") from error
        return path
    raise AssertionError("unreachable")


def slug(text: str, limit: int = 60) -> str:
    """A short file name: lower-case ASCII letters, digits and dashes, and a hash where letters were dropped."""
    decomposed = unicodedata.normalize("NFKD", text)
    words = re.sub(r"[^a-z0-9]+", "-", decomposed.encode("ascii", "ignore").decode().lower()).strip("-")
    if len(words) <= limit and words and all(letter.isascii() for letter in decomposed if letter.isalnum()):
        return words
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{words[: limit - len(digest) - 1].rstrip('-')}-{digest}".lstrip("-")
