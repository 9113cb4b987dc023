"""The entry point: words -> a function of one of the jobs files, and its failures -> one line and an exit code.

    0    done                     1    the work failed, or infra verdicts remain
    2    wrong use                130  interrupted (143: terminated), after the sandboxes are torn down

Imports nothing but the standard library until a command runs, so that --help answers at once.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from .arguments import parse

USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)

LINE = 600
"""Characters of an error; the rest is in the log file that it names, or shown by --verbose."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = parse(sys.argv[1:] if words is None else words)

    def work() -> int:
        from . import jobs, jobs_runs, jobs_tasks, jobs_train

        room = {"tasks": jobs_tasks, "run": jobs_runs, "train": jobs_train}.get(arguments.function.partition("_")[0], jobs)
        command: Callable[[argparse.Namespace], int] = getattr(room, arguments.function)
        return command(arguments)

    return guard(f"greengrad {arguments.command}", work, arguments.verbose)


def guard(name: str, work: Callable[[], int], verbose: bool = False) -> int:
    """Do the work of a command; its exit code, with one line on stderr for a failure that is not a bug of ours."""
    was_terminated = _catch_termination()
    try:
        _set_up_logging(verbose)
        return work()
    except KeyboardInterrupt:
        return _fail(name, "interrupted", 143 if was_terminated() else 130)
    except BrokenPipeError:  # `greengrad show RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise  # we are wrong: a traceback
        if verbose:
            logging.getLogger(__name__).exception("where it came from")
        return _fail(name, _one_line(error), code)


def _exit_code(error: Exception) -> int | None:
    """2 for a user's mistake, 1 for a failure of the machine, None for a bug of ours."""
    if isinstance(error, ModuleNotFoundError):
        return 1
    if isinstance(error, USER_ERRORS):
        return 2
    from sandbox import SandboxError

    from .breaker import InfraStopped
    from .journal import JournalError
    from .publish import PublishError
    from .ranks import RankError
    from .recover import Stalled
    from .types import EngineDied, NodesLost, PolicyError

    lost = RankError | EngineDied | NodesLost | Stalled
    if isinstance(error, SandboxError | PolicyError | PublishError | JournalError | InfraStopped | lost):
        return 1
    return 1 if isinstance(error, OSError) else None


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed here; scripts/setup installs it"
    if isinstance(error, OSError) and error.strerror:
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LINE else f"{text[:LINE]} ..."


def _fail(name: str, message: str, code: int) -> int:
    print(f"{name}: {message}", file=sys.stderr)
    return code


def _catch_termination() -> Callable[[], bool]:
    """SIGTERM and SIGHUP take the way of Ctrl-C, which asyncio turns into a cancellation: teardown runs."""
    received: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell without job control starts what is behind & so
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, interrupt)
    return lambda: bool(received)


def _set_up_logging(verbose: bool) -> None:
    """The one place where a handler is set: colours on a terminal, plain lines that are never wrapped in a pipe."""
    handler: logging.Handler = logging.StreamHandler()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, rich_tracebacks=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", datefmt="%X", handlers=[handler])
    if not verbose:  # it warns of every attempt to reach the hub; what came of them is one line of ours
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    for name in ("pipeline", "sandbox", "tasks"):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
