"""Which backend works here; knows their names, and imports one only when it is asked for."""

from .base import Backend, SandboxError

PATIENCE = 2.0
"""Seconds within which a Docker daemon must answer."""


def open_backend(name: str = "auto") -> Backend:
    """The backend "docker" or "bubblewrap"; "auto" is Docker where a daemon answers in 2 s, otherwise bubblewrap.

    SandboxError says what is missing and what to do, for each that was tried.
    """
    match name:
        case "docker":
            from .docker import Docker

            return Docker(PATIENCE)
        case "bubblewrap":
            from .bubblewrap import Bubblewrap

            return Bubblewrap()
        case "auto":
            return _first_that_works()
        case _:
            raise ValueError(f"sandbox {name!r}: choose auto, docker or bubblewrap")


def _first_that_works() -> Backend:
    reasons = []
    for name in ("docker", "bubblewrap"):
        try:
            return open_backend(name)
        except SandboxError as error:
            reasons.append(f"{name}: {error}")
    raise SandboxError("no sandbox works here; " + "; ".join(reasons))
