"""Progress of long work: a bar on a terminal, plain lines in a pipe; knows nothing of the work."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

SECONDS_BETWEEN_LINES = 10.0


class Progress(Protocol):
    """What the work tells."""

    def advance(self, note: str = "") -> None:
        """One more is done; the note is shown beside the bar."""
        ...


class _Lines:
    """A line now and then, and one for the last."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done = title, total, 0
        self.started = self.told = time.monotonic()

    def advance(self, note: str = "") -> None:
        """Print where ten seconds have gone by since the last line, or all is done."""
        self.done += 1
        now = time.monotonic()
        if self.done == self.total or now - self.told >= SECONDS_BETWEEN_LINES:
            self.told = now
            print(f"{self.title}: {self.done}/{self.total} in {now - self.started:.0f} s  {note}".rstrip(), file=sys.stderr, flush=True)


@contextmanager
def progress(title: str, total: int) -> Iterator[Progress]:
    """Open a bar for `total` pieces of work.

    >>> with progress("evaluate", len(tasks)) as bar:
    ...     bar.advance("7 resolved")
    """
    if not sys.stderr.isatty():
        yield _Lines(title, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with RichProgress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as bars:
        yield _Bar(bars, bars.add_task(title, total=total, note=""))


@contextmanager
def growing_progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar for work that tells (done, wanted, note) itself; it opens at the first word, because the total is known only then."""
    with ExitStack() as stack:
        bars: list[Progress] = []
        seen = 0

        def tell(done: int, wanted: int, note: str) -> None:
            nonlocal seen
            if not bars:
                bars.append(stack.enter_context(progress(title, wanted)))
            for _ in range(done - seen):
                bars[0].advance(note)
            seen = max(seen, done)

        yield tell


class _Bar:
    """A rich bar behind our Protocol."""

    def __init__(self, bars: "RichProgress", task: "TaskID") -> None:
        self.bars, self.task = bars, task

    def advance(self, note: str = "") -> None:
        """Move it by one."""
        self.bars.update(self.task, advance=1, note=note)
