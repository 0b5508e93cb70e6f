"""Run directories: their names, and the checks that a new one is unused and can be written to."""

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
from nfsd3d.runs import lock, remains
from nfsd3d.runs.files import check_writable
from nfsd3d.runs.resumable import can_be_resumed
from nfsd3d.settings.paths import user_path

OUTPUTS = Path("outputs")


@contextmanager
def claimed(config: Config, name: str) -> Iterator[Config]:
    """Yields the configuration with a run directory as :func:`claim_run_dir`, which belongs to this process.

    What an unstarted run has left there is removed (`nfsd3d.runs.remains`). If the block raises an error and nothing
    was written, the folders that were made are removed again.

    Raises:
        InputError: the directory holds files already, cannot be written to, or belongs to another process.
    """
    place = (_prompt_folder(config, name) if config.run_dir is None else user_path(config.run_dir)).absolute()
    # Unlike Path.is_dir, os.path.isdir is false for a name that is too long.
    made = [folder for folder in (place, *place.parents) if not os.path.isdir(folder)]
    try:
        config = claim_run_dir(config, name)
        run_dir = Path(str(config.run_dir))
        if run_dir.parent == place:
            made.insert(0, run_dir)
        with lock.owned(run_dir):
            check_unused(run_dir)  # again: another process may have been faster, and done
            remains.remove(run_dir)
            yield config
    except BaseException:
        for folder in made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        raise


def _prompt_folder(config: Config, name: str) -> Path:
    return OUTPUTS / name / slug(config.prompt)


def claim_run_dir(config: Config, name: str) -> Config:
    """The configuration with a run directory that exists, is unused, and can be written to.

    Its path is absolute: the process may change its working directory. Without ``run_dir`` a new one is created:
    ``outputs/<name>/<prompt>/<time>``, unique within a second too.

    Raises:
        InputError: the given directory holds files already, or cannot be written to.
    """
    if config.run_dir is None:
        return config.replace(run_dir=str(new_folder(_prompt_folder(config, name).absolute(), "")))
    path = user_path(config.run_dir)
    check_unused(path)
    return config.replace(run_dir=str(_made(path)))


def claim_folder(path: Path) -> Path:
    """``path``, absolute, as an empty directory that can be written to, created if needed.

    Raises:
        InputError: it holds files already, or cannot be written to.
    """
    check_unused(path, unstarted=False)
    return _made(path)


def _made(path: Path) -> Path:
    """``path``, absolute, as a directory that can be written to.

    Raises:
        InputError: it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        check_writable(path)
    except OSError as error:
        raise InputError(f"run_dir={path}: cannot be written ({error.strerror}); choose another") from error
    return path.absolute()


def check_unused(path: Path, *, unstarted: bool = True) -> None:
    """Raises `InputError` unless ``path`` is absent, or a directory without files that count (`nfsd3d.runs.remains`).

    ``unstarted``: it may have what an unstarted run left.
    """
    try:
        left = remains.found(path) if path.is_dir() else []
        if left is None or (left and not unstarted):
            remedy = f"go on with --resume {path}" if can_be_resumed(path) else "empty it"
            raise InputError(f"run_dir={path}: already used; choose another, or {remedy}")
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
