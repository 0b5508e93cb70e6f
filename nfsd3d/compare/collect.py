"""Records of a comparison's jobs, from their directories to the file of results."""

import shutil
from pathlib import Path

from nfsd3d.compare.jobs import PlannedJob
from nfsd3d.compare.records import append, of_job
from nfsd3d.jobs.state import SUMMARY
from nfsd3d.runs import lock
from nfsd3d.runs.remains import OF_JOBS

THUMBNAIL = "thumbnail.jpg"


def collect(job: PlannedJob, run_dir: Path, results: Path, *, keep: bool) -> None:
    """Appends the record in a job's directory, if there is one, to ``results``, and copies its thumbnail.

    The files of its run are removed then unless ``keep``; the job's own stay. A record of other weights makes the job
    undone. The caller owns the comparison, so that each record is appended once.

    Raises:
        InputError: the results cannot be written.
    """
    record = of_job(run_dir)
    if record is None or record.key != job.key:
        if record is not None:
            (run_dir / SUMMARY).unlink()
        return
    if record.image is not None:
        (results.parent / record.image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run_dir / THUMBNAIL, results.parent / record.image)
    append(results, record)
    if not keep:
        clear(run_dir, SUMMARY, THUMBNAIL)


def clear(run_dir: Path, *kept: str) -> None:
    """Removes a run's files but those of the job, its lock, and those ``kept``."""
    for entry in run_dir.iterdir():
        if not (entry.name.startswith(lock.NAME) or entry.name in (*OF_JOBS, *kept)):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
