#!/usr/bin/env python3
"""Pairs of actions a second for SRL's reward, beside difflib in the same run: python scripts/bench/similarity.py [--processes 2].

Pairs are stretches of this project's source of the given length, one an edited form of the other (similar) or of elsewhere (unrelated);
then texts of few letters that repeat, some of them changed here and there: what a policy that has broken down writes, and difflib's worst.
"""

import argparse
import difflib
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.similarity import similarity

Pair = tuple[str, str]


def make_pairs(count: int, length: int, seed: int = 0) -> list[Pair]:
    """Half similar, half unrelated."""
    source = "".join(path.read_text() for path in sorted((Path(__file__).parents[2] / "pipeline").glob("*.py")))
    rng = random.Random(seed)
    pairs = []
    for number in range(count):
        start, other = (rng.randrange(len(source) - length) for _ in range(2))
        text = source[start : start + length]
        edited = text.replace("self", "it").replace("    ", "  ", 5) if number % 2 else source[other : other + length]
        pairs.append((edited, text))
    return pairs


def make_repeating(count: int, length: int, seed: int = 0) -> list[Pair]:
    """The first is the worst that is known for difflib."""
    rng = random.Random(seed)

    def repeat() -> str:
        letters = "abcdefgh"[: rng.choice((1, 2, 2, 3, 4, 8))]
        period = [rng.choice(letters) for _ in range(rng.choice((1, 2, 3, 4, 5, 7, 11, 23, 60, 200, 700)))]
        text = (period * length)[:length]
        for _ in range(rng.choice((0, 0, 1, 5, 50, 400))):
            text[rng.randrange(length)] = rng.choice(letters + "xyz")
        return "".join(text)

    return [(("aab" * length)[:length], ("abb" * length)[:length]), *((repeat(), repeat()) for _ in range(count - 1))]


def with_difflib(action: str, expert: str) -> float:
    """The reference."""
    return difflib.SequenceMatcher(None, action, expert, autojunk=False).ratio()


def spend(ratio: Callable[[str, str], float], pairs: list[Pair]) -> float:
    """Seconds for all of them."""
    begin = time.perf_counter()
    for action, expert in pairs:
        ratio(action, expert)
    return time.perf_counter() - begin


def ours(pairs: list[Pair]) -> float:
    """For a process of its own."""
    return spend(similarity, pairs)


def main() -> None:
    """One line a length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    for length, count in ((200, 2000), (1000, 1000), (4000, 60)):
        pairs = make_pairs(count, length)
        few = pairs[: max(count // 20, 4)]
        assert all(similarity(*pair) == with_difflib(*pair) for pair in few), "another number than difflib's"
        alone, reference = spend(similarity, pairs) / count, spend(with_difflib, few) / len(few)
        with ProcessPoolExecutor(arguments.processes) as pool:
            list(pool.map(ours, [few] * arguments.processes))
            begin = time.perf_counter()
            list(pool.map(ours, [pairs[number :: arguments.processes] for number in range(arguments.processes)]))
            together = count / (time.perf_counter() - begin)
        told = f"{alone * 1e3:.2f} ms, difflib {reference * 1e3:.2f} ms ({reference / alone:.0f} times)"
        print(f"{length} characters: {told}; {1 / alone:.0f} pairs a second, {together:.0f} in {arguments.processes} processes")
    for length, count in ((500, 400), (4000, 2000)):
        pairs = make_repeating(count, length)
        seconds = [spend(similarity, [pair]) for pair in pairs]
        told = f"mean {sum(seconds) / count * 1e3:.1f} ms, longest {max(seconds) * 1e3:.1f} ms, aab.../abb... {seconds[0] * 1e3:.1f} ms"
        if length == 500:
            assert all(similarity(*pair) == with_difflib(*pair) for pair in pairs[:20]), "another number than difflib's"
            told += f" (difflib {spend(with_difflib, pairs[:1]) * 1e3:.0f} ms)"
        print(f"{length} characters that repeat, {count} pairs: {told}")


if __name__ == "__main__":
    main()
