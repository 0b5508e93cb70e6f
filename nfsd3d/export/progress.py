"""What the terminal shows while a mesh is made: a bar where it can be redrawn, else nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn


@contextmanager
def mesh_progress(console: Console) -> Iterator[Callable[[str, float], None]]:
    """Yields what takes the name of the present stage, and the share in [0,1] of everything that is done."""
    columns = (TextColumn("mesh"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda stage, done: bar.update(task, description=stage, completed=done)
