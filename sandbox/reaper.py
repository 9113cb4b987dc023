"""A small process beside each owner of machines, which removes what it leaves behind, however it dies; knows how to sweep, no more.

It holds the other end of a pipe and sleeps. Where the owner ends in order it says so, and the reaper ends too; where the pipe just
closes (kill -9, out of memory, a crash of the interpreter) it sweeps until nothing is left. What it misses, because it was killed as
well, the next run's sweep finds: `greengrad doctor --clean`, or the start of any run.
"""

import atexit
import functools
import os
import subprocess
import sys
import time
from pathlib import Path

from .base import SandboxError

WAITS = (0.2, 2.0, 5.0, 10.0, 20.0, 40.0)
"""Seconds before each sweep: a container whose creation was under way when its owner died appears late, a daemon may be frozen."""
CODE = """
import os, sys
if reaper := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(reaper, 0)[1]))
told = sys.stdin.buffer.read()
told or __import__("sandbox.reaper").reaper.reap(*sys.argv[1:])
"""
"""Nothing is imported before it is needed: a sleeping reaper takes some 8 MB. There are two: whoever kills the children of a dead owner, as
Ray does, kills the first, which only waits for the second."""


@functools.cache
def guard(backend: str, host: str | None = None) -> None:
    """Start the reaper of this process for a backend (and one Docker host), once."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, backend, *([host] if host else [])],
        stdin=subprocess.PIPE,
        stdout=quiet,
        stderr=quiet,
        env=env,
        start_new_session=True,
    )
    atexit.register(_dismiss, process, os.getpid())


def _dismiss(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a forked child must not end its parent's reaper
        return
    try:
        process.communicate(b"in order", timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        process.kill()
        process.wait(timeout=5)


def reap(backend: str, host: str | None = None) -> None:
    """Sweep several times, also where a sweep fails."""
    for seconds in WAITS:
        time.sleep(seconds)
        try:
            if _sweep(backend, host) == 0 and seconds > WAITS[0]:
                return
        except SandboxError:
            continue  # the daemon does not answer: later


def _sweep(backend: str, host: str | None) -> int:
    if backend == "bubblewrap":
        from . import cgroup

        return cgroup.sweep()
    import asyncio

    from .docker import Docker

    return asyncio.run(Docker(host=host, guarded=False).sweep())
