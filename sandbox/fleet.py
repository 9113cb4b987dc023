"""Several Docker hosts as one backend: a machine starts where most room is, and elsewhere when that host fails; knows no images or trees.

covered:     placement by free processors (those of the host less those promised to its open machines); a host that fails rests for a
             while and is asked again; one that does not answer at the beginning is said and left out until it does.
not covered: moving a machine that runs: what its host takes with it fails as a SandboxError, and the episode starts again elsewhere.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from .base import Image, Limits, SandboxError
from .docker import Docker
from .machine import Machine

log = logging.getLogger(__name__)
REST_SECONDS = 30.0
"""How long a host that failed is left alone while others work."""


class _Host:
    """One daemon: connected when it is first needed, with the processors that its machines were promised."""

    def __init__(self, url: str, connect: Callable[[str], Docker]) -> None:
        self.url, self._connect = url, connect
        self._docker: Docker | None = None
        self._promised = 0.0
        self.rests_until = 0.0

    async def docker(self) -> Docker:
        """The backend; SandboxError where the daemon does not answer."""
        if self._docker is None:
            self._docker = await asyncio.to_thread(self._connect, self.url)
        return self._docker

    @property
    def room(self) -> float:
        """Processors that are free; a host that was never reached counts as empty, with one."""
        return (self._docker.cpus if self._docker else 1) - self._promised

    async def start(self, image: Image, limits: Limits) -> Machine:
        """A machine here, counted until it is closed."""
        self._promised += limits.cpus
        give_back = partial(self._give_back, limits.cpus)
        try:
            machine = await (await self.docker()).start(image, limits)
        except BaseException:
            give_back()
            raise
        machine.when_closed(give_back)
        return machine

    def _give_back(self, cpus: float) -> None:
        self._promised -= cpus


class Fleet:
    """The backend over several hosts."""

    name = "docker"

    def __init__(self, urls: Sequence[str], patience: float = 2.0, image_gb: float = 100.0) -> None:
        """Hosts as "unix://...", "tcp://...", "ssh://..."; they are connected when they are needed."""
        self._hosts = [_Host(url, lambda url: Docker(patience, url, image_gb)) for url in urls]

    async def start(self, image: Image, limits: Limits) -> Machine:
        """A fresh machine on the host with most room; SandboxError when every host has failed."""
        reasons = []
        for host in self._in_order():
            try:
                return await host.start(image, limits)
            except SandboxError as error:
                log.warning("%s rests for %.0f s: %s", host.url, REST_SECONDS, error)
                host.rests_until = time.monotonic() + REST_SECONDS
                reasons.append(f"{host.url}: {error}")
        raise SandboxError("no Docker host could start a machine; " + "; ".join(reasons))

    async def prepare(self, image_name: str) -> str:
        """Make an image available on every host that answers; its digest. SandboxError when none does."""
        digests = []
        for host in self._hosts:
            try:
                digests.append(await (await host.docker()).prepare(image_name))
            except SandboxError as error:
                log.warning("%s: %s", host.url, error)
                host.rests_until = time.monotonic() + REST_SECONDS
                reason = error
        if not digests:
            raise SandboxError(f"no Docker host could prepare {image_name}") from reason
        return digests[0]

    async def own_tree(self, image: Image) -> Path:
        """The repository of an image, from the first host that gives it; SandboxError when none does."""
        reasons = []
        for host in self._in_order():
            try:
                return await (await host.docker()).own_tree(image)
            except SandboxError as error:
                reasons.append(f"{host.url}: {error}")
        raise SandboxError("no Docker host could take out the repository; " + "; ".join(reasons))

    async def sweep(self) -> int:
        """Sweep every host that answers; SandboxError when none does."""
        swept, reasons = 0, []
        for host in self._hosts:
            try:
                swept += await (await host.docker()).sweep()
            except SandboxError as error:
                reasons.append(f"{host.url}: {error}")
        if len(reasons) == len(self._hosts):
            raise SandboxError("no Docker host answers; " + "; ".join(reasons))
        return swept

    def _in_order(self) -> list[_Host]:
        """Those that rest come last; among the others most room first."""
        now = time.monotonic()
        return sorted(self._hosts, key=lambda host: (host.rests_until > now, -host.room))
