#!/usr/bin/env python3
"""The official `swebench` command, unchanged but for two things about its containers.

    python scripts/bench/harness.py [--quick-stop] eval rows.jsonl -p preds.jsonl --run-id mine -j 2

They get no network, as ours (a daemon without a bridge can start them too). --quick-stop: they are killed when they are done, instead of
being asked to stop and given 15 seconds, which pid 1 (`tail -f /dev/null`) lets pass every time.
"""

import sys
from typing import Any

from docker.models.containers import Container, ContainerCollection
from swebench.cli.cli import main

create = ContainerCollection.create


def create_alone(self: ContainerCollection, image: Any, command: Any = None, **options: Any) -> Container:
    """A container without a network."""
    return create(self, image, command, **options, network_mode="none")


def stop_at_once(self: Container, **_: Any) -> None:
    """Kill it."""
    self.kill()


if __name__ == "__main__":
    ContainerCollection.create = create_alone
    if sys.argv[1:2] == ["--quick-stop"]:
        del sys.argv[1]
        Container.stop = stop_at_once
    sys.exit(main())
