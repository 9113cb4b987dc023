"""Which backend works here; knows their names, and imports one only when it is asked for."""

from collections.abc import Sequence

from .base import Backend, SandboxError

PATIENCE = 2.0
"""Seconds within which a Docker daemon must answer."""


def open_backend(name: str = "auto", hosts: Sequence[str] = (), image_gb: float = 100.0) -> Backend:
    """The backend "docker" or "bubblewrap"; "auto" is Docker where a daemon answers in 2 s, otherwise bubblewrap.

    `hosts`: Docker daemons to share the work, by URL; empty: the one that the environment names (DOCKER_HOST).
    `image_gb`: what images of ours may take of a Docker host's disk.
    SandboxError says what is missing and what to do, for each that was tried.
    """
    if hosts and name == "bubblewrap":
        raise ValueError("sandbox.hosts names Docker hosts; bubblewrap runs on this one only")
    if hosts:
        from .fleet import Fleet

        return Fleet(hosts, PATIENCE, image_gb)
    match name:
        case "docker":
            from .docker import Docker

            return Docker(PATIENCE, image_gb=image_gb)
        case "bubblewrap":
            from .bubblewrap import Bubblewrap

            return Bubblewrap()
        case "auto":
            return _first_that_works(image_gb)
        case _:
            raise ValueError(f"sandbox {name!r}: choose auto, docker or bubblewrap")


def _first_that_works(image_gb: float) -> Backend:
    reasons = []
    for name in ("docker", "bubblewrap"):
        try:
            return open_backend(name, image_gb=image_gb)
        except SandboxError as error:
            reasons.append(f"{name}: {error}")
    raise SandboxError("no sandbox works here; " + "; ".join(reasons))
