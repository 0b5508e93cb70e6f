"""The progress bar of mesh extraction; invisible unless the console is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn


@contextmanager
def mesh_progress(console: Console) -> Iterator[Callable[[str, float], None]]:
    """Yields a callback (``extract.OnProgress``): the present stage, and the fraction in [0,1] that is done."""
    columns = (TextColumn("mesh"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda stage, done: bar.update(task, description=stage, completed=done)
