"""Runs a command in a process group of its own and kills the whole group when our caller is gone; knows nothing of the command.

    python -m pipeline.guard COMMAND ...

The caller holds the other end of our standard input. It ends with the caller, even with kill -9: then the group gets SIGTERM,
and SIGKILL ten seconds later, so that no engine outlives its run with gigabytes of memory in hand. We are two processes: whoever kills
the children of a dead caller, as Ray does, kills the first, which only waits for the second.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

GRACE_SECONDS = 10.0
"""Between SIGTERM and SIGKILL."""


def main(command: Sequence[str]) -> int:
    """The command's exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the caller decides, by closing the pipe
    if second := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(second, 0)[1])
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_restore_signals)
    try:
        _wait_for_end(child)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    os._exit(child.wait() % 256)


def _wait_for_end(child: subprocess.Popen[bytes]) -> None:
    """Until the caller closes our standard input or the child ends."""
    while child.poll() is None:
        ready, _, _ = select.select([sys.stdin], [], [], 0.5)
        if ready and not os.read(sys.stdin.fileno(), 4096):
            return


def _restore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
