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
from swebench.harness import run_evaluation

create = ContainerCollection.create


def create_alone(self: ContainerCollection, image: Any, command: Any = None, **options: Any) -> Container:
    """A container without a network."""
    return create(self, image, command, **options, network_mode="none")


def remove_at_once(_client: Any, container: Container | None, _logger: Any) -> None:
    """Kill it and remove it, in place of `docker stop --time=15`."""
    if container:
        container.remove(force=True)


if __name__ == "__main__":
    ContainerCollection.create = create_alone
    if sys.argv[1:2] == ["--quick-stop"]:
        del sys.argv[1]
        run_evaluation.cleanup_container = remove_at_once
    sys.exit(main())
