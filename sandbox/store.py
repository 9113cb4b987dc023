"""The folder of things made once and kept ($GREENGRAD_HOME, default ~/.cache/greengrad); knows nothing of what they are."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .base import SandboxError


def home() -> Path:
    """The store's folder, made if missing."""
    folder = Path(os.environ.get("GREENGRAD_HOME") or Path.home() / ".cache" / "greengrad").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(name: str, seconds: float = 900.0) -> Iterator[None]:
    """Hold a lock that works between processes; SandboxError when it is not had in time."""
    path = home() / "locks" / name
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise SandboxError(f"{path}: another process has held this lock for {seconds:.0f} s") from None
                time.sleep(0.05)
        yield


def make_once(kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """The folder store/kind/name, filled by `make` if it is not there: one maker at a time, visible only when whole."""
    target = home() / kind / name
    if target.exists():
        return target
    with locked(f"{kind}-{name}"):
        if target.exists():
            return target
        target.parent.mkdir(exist_ok=True)
        for abandoned in target.parent.glob(f".{name}-*"):  # its maker was killed: we hold the lock
            shutil.rmtree(abandoned, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
        try:
            draft.chmod(0o755)
            make(draft)
            draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return target
