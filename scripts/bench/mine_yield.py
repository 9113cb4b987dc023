#!/usr/bin/env python3
"""How many small fixes of real repositories become tasks, and why the others do not: `greengrad tasks mine` on a folder of repositories.

    python scripts/bench/mine_yield.py --repos DIR --out OUT [--limit 12] [--sandbox bubblewrap]

DIR/OWNER+NAME[/repo] is a git repository. Prints a Markdown table and the reasons; an interrupted run goes on.
"""

import argparse
import asyncio
import re
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from sandbox import open_backend
from tasks import Claim, load_suite, mine_suite, seal_tasks
from tasks.lineage import entries


def main() -> None:
    """Mine every repository into a suite of its own, seal what was kept, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[], help="names of repositories, OWNER/NAME")
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--sandbox", default="auto")
    parser.add_argument("-j", "--jobs", type=int, default=2)
    arguments = parser.parse_args()
    reasons: Counter[str] = Counter()
    total: Counter[str] = Counter()
    print("| repository | tried | valid | a failing test was there | tests import what is new | sealed | seconds |")
    print("|" + "---|" * 7)
    for folder in sorted(path for path in arguments.repos.iterdir() if "+" in path.name):
        name = folder.name.replace("+", "/")
        if not arguments.only or name in arguments.only:
            total.update(_mine(arguments, folder, name, reasons))
    print(f"| all | {total['tried']} | {total['valid']} | {total['existing']} | {total['unimportable']} | {total['sealed']} | |\n")
    for reason, count in reasons.most_common():
        print(f"- {count} {reason}")


def _mine(arguments: argparse.Namespace, folder: Path, name: str, reasons: Counter[str]) -> Counter[str]:
    out, started = arguments.out / folder.name, time.monotonic()
    backend = open_backend(arguments.sandbox)
    repo = folder / "repo" if (folder / "repo").is_dir() else folder
    suite = asyncio.run(mine_suite(Claim(str(repo), name, arguments.limit), out, backend, _tell, arguments.jobs))
    tried = [entry for entry in entries(out) if entry.get("step") == "mine"]
    kept = [entry for entry in tried if entry["kept"]]
    reasons.update(_short(entry["why"]) for entry in tried if not entry["kept"])
    seconds = time.monotonic() - started
    sealed = asyncio.run(seal_tasks(backend, load_suite(suite.path).tasks))
    for task in sealed:
        if task.unusable:
            print(f"{task.instance_id}: {task.unusable}", file=sys.stderr)
    counts = Counter(tried=len(tried), valid=len(kept), existing=sum(entry["existing"] > 0 for entry in kept))
    counts["unimportable"] = sum(entry["unimportable_before"] for entry in kept)
    counts["sealed"] = sum(not task.unusable for task in sealed)
    print(f"| {name} | " + " | ".join(str(counts[key]) for key in ("tried", "valid", "existing", "unimportable", "sealed")), end="")
    print(f" | {seconds:.0f} |", flush=True)
    return counts


def _short(why: str) -> str:
    """A reason without what differs from commit to commit."""
    return re.sub(r"tests/\S+|test/\S+|\d+ of|line \d+", "...", why)[:110]


def _tell(done: int, total: int, line: str) -> None:
    print(f"{done}/{total} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
