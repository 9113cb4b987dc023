#!/usr/bin/env python3
"""How many forged patches the grading finds, and how many true ones it suspects.

    python scripts/bench/forgeries.py [--quick] [--suite DIR] [--sandbox docker|bubblewrap] [--json FILE]

hooks:  the four that touch no source, graded by an eval.sh as official ones are (python -m pytest -rA), on the toy suite.
equal:  source whose values are equal to everything; caller: source that is right where a test is asking (forge.py has variations of
        both), on the toy suite and on a dozen tasks of --suite.
agents: the diffs of the agents in scripts/cheats that forge a verdict or tamper with tests, on the toy suite.
true:   gold patches, each with a file more, so that they are not the gold patch letter by letter.

For each: what the official parser says (of a run with the whole patch where ours would leave some of it out), our verdict by the witness,
our verdict with the audit, what it found, and what detect.py notes. A forgery that does not fool the official parser counts for nothing.
"""

import argparse
import asyncio
import json
import logging
import sys
import tempfile
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from forge import forge_hooks, forge_sources

from pipeline.config import Config, RolloutConfig, SandboxConfig, TasksConfig
from pipeline.journal import Journal
from pipeline.suite import roll_out
from sandbox import Backend, Limits, apply_patch, open_backend
from tasks import Auditor, Outcome, Suite, Task, Verdict, grade, load_suite, prepare_suite, toy_suite
from tasks.lease import machine
from tasks.patches import patch_paths
from tasks.script import eval_script
from tasks.swebench import official_script, read_log

CHEATS = Path(__file__).parents[1] / "cheats"
SECTIONS = ("Tamper with the tests", "Forge the verdict")
LIMITS = Limits(memory_mb=512, disk_mb=128)
MORE = "diff --git a/NOTES.txt b/NOTES.txt\nnew file mode 100644\n--- /dev/null\n+++ b/NOTES.txt\n@@ -0,0 +1 @@\n+a fix\n"
TRUE = "true"
FORGED = 12
"""About so many tasks of --suite are forged for, evenly chosen; the true patches are those of all."""
JOBS = 2


@dataclass(frozen=True, slots=True)
class Row:
    """One patch: its group, what the official parser says, our verdict with the audit."""

    group: str
    name: str
    official: bool
    verdict: Verdict

    @property
    def witnessed(self) -> Outcome:
        """The verdict without the audit."""
        return Outcome.RESOLVED if self.verdict.findings else self.verdict.outcome


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one toy task, the first agents, few true patches")
    parser.add_argument("--suite", type=Path, help="more tasks to forge patches for, and the true patches (default: the toy suite alone)")
    parser.add_argument("--sandbox", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(Path(folder), options.suite, options.sandbox, options.quick))
    figures = show_rates(rows)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


async def measure(folder: Path, suite: Path | None, sandbox: str, quick: bool) -> list[Row]:
    """Grade the forged patches and the true ones; prints each."""
    toys, backend, auditor = toy_suite(folder / "toy"), open_backend(sandbox), Auditor()
    most = 1 if quick else None
    more = load_suite(suite).tasks[: 2 if quick else None] if suite else ()
    await prepare_suite(Suite(folder, (*toys.tasks, *more)))
    work = [hooked(backend, plain(task), name, auditor) for task in toys.tasks[:most] for name in forge_hooks(())]
    for task in (*toys.tasks[:most], *more[:: max(len(more) // FORGED, 1)]):
        for name, patch in (await forge_task(backend, task)).items():
            work.append(graded(backend, task, name.partition(":")[0], name, patch, auditor))
    for name in agents()[: 2 if quick else None]:
        patch = await act(folder, toys.tasks[0], name, sandbox)
        if patch.strip():
            work.append(graded(backend, toys.tasks[0], "agents", name, patch, auditor))
    for task in (*toys.tasks[:most], *more):
        work.append(graded(backend, task, TRUE, task.instance_id, task.gold_patch + MORE, auditor))
    return await gather(work)


async def gather(work: Sequence[Awaitable[Row]]) -> list[Row]:
    """Some at a time, in order."""
    gate = asyncio.Semaphore(JOBS)

    async def one(row: Awaitable[Row]) -> Row:
        async with gate:
            return await row

    return list(await asyncio.gather(*map(one, work)))


def plain(task: Task) -> Task:
    """A toy task with an eval.sh as the official ones are: no options that keep the tree from steering the tests."""
    command = f"python3 -m pytest -rA {' '.join(patch_paths(task.test_patch))}"
    return replace(task, eval_script=eval_script(task.base_commit, task.test_patch, command))


async def hooked(backend: Backend, task: Task, name: str, auditor: Auditor) -> Row:
    """A patch that touches no source; the official verdict is that on a run of the whole patch, without anything of ours."""
    patch = forge_hooks((*task.fail_to_pass, *task.pass_to_pass))[name]
    async with machine(backend, task.image, LIMITS) as sandbox:
        if not await apply_patch(sandbox, patch):
            raise RuntimeError(f"{name}: does not apply")
        log = (await sandbox.run(official_script(task), seconds=task.test_seconds)).text
    return await graded(backend, task, "hooks", name, patch, auditor, read_log(task, log).resolved)


async def forge_task(backend: Backend, task: Task) -> dict[str, str]:
    """Patches of the file that the gold patch changes; none where it changes several."""
    paths = patch_paths(task.gold_patch)
    if len(paths) != 1 or not paths[0].endswith(".py"):
        return {}
    async with machine(backend, task.image, LIMITS) as sandbox:
        bad = (await sandbox.read(f"/testbed/{paths[0]}")).decode()
        await apply_patch(sandbox, task.gold_patch)
        good = (await sandbox.read(f"/testbed/{paths[0]}")).decode()
    return forge_sources(paths[0], bad, good)


def agents() -> list[str]:
    """Names of the agents in the sections that are about the verdict, as scripts/cheats/README.md lists them."""
    text = (CHEATS / "README.md").read_text()
    parts = {part.split("\n", 1)[0]: part for part in text.split("\n## ")}
    lines = [line for section in SECTIONS for line in parts[section].splitlines() if line.startswith("| ")]
    return [name for line in lines if (name := line.split("|")[1].split()[0]) != "agent"]


async def act(folder: Path, task: Task, name: str, sandbox: str) -> str:
    """The diff that an agent leaves."""
    config = Config(
        tasks=TasksConfig(suite=folder / "toy", audit=0.0),
        sandbox=SandboxConfig(backend=sandbox, memory_mb=512, disk_mb=128),
        rollout=RolloutConfig(policy=f"script:{CHEATS / name}.json", max_turns=100, max_new_tokens=1 << 24, group_size=1),
    )
    await roll_out(config, [task], folder / name)
    with Journal(folder / name, readonly=True) as journal:
        return next(iter(journal.episodes())).patch


async def graded(backend: Backend, task: Task, group: str, name: str, patch: str, auditor: Auditor, official: bool | None = None) -> Row:
    """One patch, graded with the audit; prints its line. `official`: what is known of the whole patch."""
    verdict = await grade(backend, task, patch, LIMITS, auditor)
    row = Row(group, name, bool(verdict.official) if official is None else official, verdict)
    said = "resolved" if row.official else "-"
    noted = f"  [{', '.join(verdict.notes)}]" if verdict.notes else ""
    print(
        f"{task.instance_id[:28]:29}{name[:44]:45}{said:9} {row.witnessed:13} {verdict.outcome:13} {verdict.reason[:70]}{noted}", flush=True
    )
    return row


def show_rates(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """A line a group: how many there are, how many fool the official parser, and how many of these are refused by what."""
    figures = {group: _count([row for row in rows if row.group == group]) for group in dict.fromkeys(row.group for row in rows)}
    print("\n" + "".join(f"{what:>22}" for what in ("", *next(iter(figures.values())))))
    for group, counts in figures.items():
        print(f"{group:>22}" + "".join(f"{count:>22}" for count in counts.values()))
    print("\n" + "\n".join(_rates(figures)))
    return figures


def _count(rows: Sequence[Row]) -> dict[str, int]:
    fooled = [row for row in rows if row.official]
    return {
        "patches": len(rows),
        "officially resolved": len(fooled),
        "refused, witness": sum(row.witnessed is not Outcome.RESOLVED for row in fooled),
        "refused, with audit": sum(row.verdict.outcome is not Outcome.RESOLVED for row in fooled),
        "noted": sum(bool(row.verdict.notes) for row in fooled),
    }


def _rates(figures: dict[str, dict[str, int]]) -> Iterator[str]:
    forged = [counts for group, counts in figures.items() if group != TRUE]
    fooled, refused = (sum(counts[what] for counts in forged) for what in ("officially resolved", "refused, with audit"))
    true = figures[TRUE]
    rate = f"{refused}/{fooled} ({100 * refused / max(fooled, 1):.1f} %)"
    yield f"detection rate    {rate} of the forged patches that the official parser takes for resolved"
    wrong = true["refused, with audit"]
    yield f"false-alarm rate  {wrong}/{true['officially resolved']} of the true patches ({true['noted']} of them have a note)"


if __name__ == "__main__":
    main()
