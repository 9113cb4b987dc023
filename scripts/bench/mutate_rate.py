#!/usr/bin/env python3
"""How fast bugs are planted in one package: valid tasks a minute, what became of the rest, and what a trial costs.

    python scripts/bench/mutate_rate.py [--package NAME] [-n N] [--sample K] [--sandbox bubblewrap] [--json FILE]

The package is one of the recipe `small` (its kinds of bug, or all with --all-kinds). First N tasks are built as `tasks build` does, from
nothing, the baseline included; then the phases of the first K trials are timed one after the other: `start` is a machine with the tree,
`baseline` all tests with the recorder, `candidates` finding and choosing mutations, `screen` the tests that come to an edit, `prove` the
tree, its commit and the official evaluation before and after the fix. On a machine that others use too, `cpu seconds` (of this process
and of the machines that it started) say what the wall clock cannot.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).parents[2]))
from sandbox import Backend, Image, Pool, ensure_environment, make_tree, open_backend
from tasks import build_suite
from tasks.base import Task
from tasks.plant import LIMITS, Workshop, make_task
from tasks.recipe import Recipe, load_recipe
from tasks.screen import Subject, find_candidates, run_baseline, screen
from tasks.sdist import fetch_sdist, unpack_sdist

T = TypeVar("T")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", default="toolz")
    parser.add_argument("-n", type=int, default=20, metavar="N", help="tasks to build (default 20)")
    parser.add_argument("--sample", type=int, default=10, metavar="K", help="trials to time (default 10)")
    parser.add_argument("--all-kinds", action="store_true", help="also the kinds that the recipe leaves out")
    parser.add_argument("--sandbox", default="auto", choices=("auto", "docker", "bubblewrap"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    options = parser.parse_args()
    recipe = choose(options.package, options.n, options.all_kinds)
    backend = open_backend(options.sandbox)
    with tempfile.TemporaryDirectory(prefix="greengrad-rate-") as folder:
        figures = asyncio.run(measure_rate(recipe, backend, Path(folder) / "suite"))
        figures |= asyncio.run(measure_phases(recipe, backend, Path(folder), options.sample))
    figures |= {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d"), "backend": type(backend).__name__}
    for name, value in figures.items():
        print(f"{name:24} {value:.2f}" if isinstance(value, float) else f"{name:24} {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def choose(name: str, tasks: int, all_kinds: bool) -> Recipe:
    """The recipe `small` with one package and so many tasks."""
    recipe = load_recipe("small")
    package = next((package for package in recipe.packages if package.name == name), None)
    if package is None:
        raise SystemExit(f"no package {name} in the recipe small: {', '.join(package.name for package in recipe.packages)}")
    without = () if all_kinds else recipe.without
    return recipe.model_copy(update={"packages": (package.model_copy(update={"tasks": tasks}),), "without": without})


async def measure_rate(recipe: Recipe, backend: Backend, out: Path) -> dict[str, Any]:
    """Valid tasks a minute, as a user sees it."""
    await asyncio.to_thread(ensure_environment, recipe.requirements)  # made once on a machine
    began, used = time.monotonic(), cpu_seconds()
    suite = await build_suite(recipe, out, backend)
    seconds, used = time.monotonic() - began, cpu_seconds() - used
    rows = [json.loads(line) for line in (out / "lineage.jsonl").read_text().splitlines()]
    why = Counter(row["why"] for row in rows if not row["kept"])
    return {
        "package": recipe.packages[0].name,
        "tried": len(rows),
        "kept": len(suite.tasks),
        "seconds": seconds,
        "cpu seconds": used,
        "valid tasks/minute": 60 * len(suite.tasks) / seconds,
        **{f"not kept: {reason}": count for reason, count in why.most_common()},
        **{f"kind: {kind}": count for kind, count in sorted(Counter(row["kind"] for row in rows if row["kept"]).items())},
    }


def cpu_seconds() -> float:
    """Of this process and its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


async def measure_phases(recipe: Recipe, backend: Backend, scratch: Path, sample: int) -> dict[str, float]:
    """Seconds of each phase: of the package once, and the mean of a trial."""
    package, seconds = recipe.packages[0], Counter[str]()

    async def timed(phase: str, work: Awaitable[T]) -> T:
        began = time.monotonic()
        result = await work
        seconds[phase] += time.monotonic() - began
        return result

    folder, tree = scratch / "source", scratch / "source.tar"
    unpack_sdist(fetch_sdist(package.name, package.version, package.sha256, scratch), folder, package.exclude)
    make_tree(folder, tree)
    image = Image(ensure_environment(recipe.requirements), tree)
    async with Pool(backend, LIMITS, 2, ahead=1, reuse=32) as pool:
        workshop = Workshop(pool, image.name, scratch)
        lease = pool.lease(image, LIMITS)
        sandbox = await timed("start", lease.__aenter__())
        baseline = await timed("baseline", run_baseline(sandbox, recipe, package))
        subject = Subject(recipe, package, folder, baseline)
        found = await timed("candidates", asyncio.to_thread(find_candidates, subject))
        proofs = 0
        for mutation in found[:sample]:
            screening = await timed("screen", screen(sandbox, mutation, subject))
            if not screening.why:
                proofs += isinstance(await timed("prove", make_task(workshop, subject, mutation, screening)), Task)
        await lease.__aexit__(None, None, None)
    once = {f"seconds of {phase}": seconds[phase] for phase in ("start", "baseline", "candidates")}
    each = {"seconds of one screen": seconds["screen"] / len(found[:sample]), "seconds of one prove": seconds["prove"] / max(1, proofs)}
    return once | each | {"candidates": float(len(found))}


if __name__ == "__main__":
    main()
