#!/usr/bin/env python3
"""How many forged patches the grading finds, and how many true ones it suspects.

    python scripts/bench/forgeries.py [--quick] [--suite DIR] [--sandbox docker|bubblewrap] [--json FILE]

Forged: the diffs of the agents in scripts/cheats that forge a verdict or tamper with tests, on the toy suite. True: the gold patches of
the suite, each with a file more, so that they are not the gold patch letter by letter. For each: what the official parser says of the
log, our verdict by the witness, our verdict with the audit.
"""

import argparse
import asyncio
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.config import Config, RolloutConfig, SandboxConfig, TasksConfig
from pipeline.journal import Journal
from pipeline.suite import roll_out
from sandbox import Backend, Limits, open_backend
from tasks import Auditor, Outcome, Task, Verdict, grade, load_suite, prepare_suite, toy_suite

CHEATS = Path(__file__).parents[1] / "cheats"
SECTIONS = ("Tamper with the tests", "Forge the verdict")
LIMITS = Limits(memory_mb=512, disk_mb=128)
MORE = "diff --git a/NOTES.txt b/NOTES.txt\nnew file mode 100644\n--- /dev/null\n+++ b/NOTES.txt\n@@ -0,0 +1 @@\n+a fix\n"


@dataclass(frozen=True, slots=True)
class Row:
    """One patch, graded without and with the audit."""

    name: str
    witnessed: Verdict
    audited: Verdict


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="five agents and five true patches")
    parser.add_argument("--suite", type=Path, help="where the true patches come from (default: the toy suite)")
    parser.add_argument("--sandbox", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    most = 5 if options.quick else None
    with tempfile.TemporaryDirectory() as folder:
        forged, true = asyncio.run(measure(Path(folder), options.suite, options.sandbox, most))
    figures = show(forged, true)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


async def measure(folder: Path, suite: Path | None, sandbox: str, most: int | None) -> tuple[list[Row], list[Row]]:
    """Grade the forged patches and the true ones."""
    toys, backend = toy_suite(folder / "toy"), open_backend(sandbox)
    names = agents()[:most]
    patches = {name: await forge(folder, toys.tasks[0], name, sandbox) for name in names}
    auditor = Auditor()
    forged = [await both(backend, toys.tasks[0], name, patch, auditor) for name, patch in patches.items() if patch.strip()]
    found = load_suite(suite) if suite else toys
    await prepare_suite(found)
    return forged, [await both(backend, task, task.instance_id, task.gold_patch + MORE, auditor) for task in found.tasks[:most]]


def agents() -> list[str]:
    """Names of the agents in the sections that are about the verdict, as scripts/cheats/README.md lists them."""
    text = (CHEATS / "README.md").read_text()
    parts = {part.split("\n", 1)[0]: part for part in text.split("\n## ")}
    lines = [line for section in SECTIONS for line in parts[section].splitlines() if line.startswith("| ")]
    return [name for line in lines if (name := line.split("|")[1].split()[0]) != "agent"]


async def forge(folder: Path, task: Task, name: str, sandbox: str) -> str:
    """The diff that an agent leaves."""
    config = Config(
        tasks=TasksConfig(suite=folder / "toy", audit=0.0),
        sandbox=SandboxConfig(backend=sandbox, memory_mb=512, disk_mb=128),
        rollout=RolloutConfig(policy=f"script:{CHEATS / name}.json", max_turns=100, max_new_tokens=1 << 24, group_size=1),
    )
    await roll_out(config, [task], folder / name)
    with Journal(folder / name, readonly=True) as journal:
        return next(iter(journal.episodes())).patch


async def both(backend: Backend, task: Task, name: str, patch: str, auditor: Auditor) -> Row:
    """Graded twice."""
    return Row(name, await grade(backend, task, patch, LIMITS), await grade(backend, task, patch, LIMITS, auditor))


def show(forged: Sequence[Row], true: Sequence[Row]) -> dict[str, float]:
    """A table of the forged patches that fool the official parser, and the rates."""
    fooled = [row for row in forged if row.witnessed.official]
    for row in forged:
        official = "resolved" if row.witnessed.official else "-"
        ours = f"witness {row.witnessed.outcome:13} with audit {row.audited.outcome:11}"
        print(f"{row.name:32} official {official:9} {ours} {row.audited.reason[:70]}")
    figures = {
        "forged": len(forged),
        "fool the official parser": len(fooled),
        "of these refused by the witness": sum(row.witnessed.outcome is not Outcome.RESOLVED for row in fooled),
        "of these refused with the audit": sum(row.audited.outcome is not Outcome.RESOLVED for row in fooled),
        "forged and resolved in the end": sum(row.audited.outcome is Outcome.RESOLVED for row in forged),
        "true": len(true),
        "true and suspected": sum(row.audited.outcome is not Outcome.RESOLVED for row in true),
    }
    print("\n" + "\n".join(f"{what:34} {count}" for what, count in figures.items()))
    return {what: float(count) for what, count in figures.items()}


if __name__ == "__main__":
    main()
