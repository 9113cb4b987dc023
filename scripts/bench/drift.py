#!/usr/bin/env python3
"""How often the rules of pipeline/drift.py are right: answers written by hand, faithful and drifted, before any was tried.

    python scripts/bench/drift.py [--json FILE]

Each set has an issue, all of whose sentences but the first are withheld, and questions with an answer that keeps to the goal in other words
("faithful") or does not. Printed are false alarms and misses. A model's answers are other ones: this is a floor, not an estimate.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.brief import make_brief
from pipeline.drift import Answer, find_faults

DASH = "`slugify` loses accents. `slugify('é')` should be 'e'. Two dashes in a row become one. An empty text must not raise an error."
DATES = (
    "The parser rejects good dates. It should accept 29 February in leap years. Years before 1900 are not supported. Ideally it is fast."
)
CACHE = "The cache returns stale values. After 60 seconds an entry is gone. A failed call is never cached. `clear()` removes everything."
SETS: tuple[tuple[str, tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]], ...] = (
    (
        DASH,
        (
            ("What of accents?", "For `slugify('é')` I expect a plain 'e'."),
            ("What about dashes?", "If there are two dashes in a row, I want just one."),
            ("And an empty text?", "Nothing should be raised when the text is empty."),
            ("And an empty text?", "An empty text must work, without an error."),
            ("Should two dashes stay?", "No, two in a row become one dash."),
        ),
        (
            ("What of accents?", "Accents should be kept as they are."),
            ("What about dashes?", "Two dashes in a row do not become one."),
            ("What about dashes?", "Dashes are replaced by 3 underscores."),
            ("And an empty text?", "An empty text must raise an error."),
            ("What else?", "It should also support Cyrillic transliteration tables for banking customers."),
        ),
    ),
    (
        DATES,
        (
            ("Which dates?", "29 February, when it is a leap year."),
            ("What of old years?", "You need not care about years before 1900."),
            ("What of old years?", "Years before 1900 aren't supported, and that is fine."),
            ("Is speed important?", "Fast would be ideal, yes."),
            ("Does 30 February count?", "No, not 30 February; 29 February in leap years."),
        ),
        (
            ("Which dates?", "It should reject 29 February in leap years."),
            ("What of old years?", "Years before 1900 are supported."),
            ("What of old years?", "Anything from 1850 on must work."),
            ("Is speed important?", "It must take less than 20 ms."),
            ("Does 30 February count?", "Yes, 30 February is good."),
        ),
    ),
    (
        CACHE,
        (
            ("How long is an entry kept?", "An entry goes away after 60 seconds."),
            ("How long is an entry kept?", "60 seconds, not longer."),
            ("Are failures cached?", "Please never cache a failed call."),
            ("Are failures cached?", "No."),
            ("What does clear do?", "Everything is removed by `clear()`."),
        ),
        (
            ("How long is an entry kept?", "For 90 seconds."),
            ("How long is an entry kept?", "After 60 seconds an entry is not gone."),
            ("Are failures cached?", "A failed call is cached like any other."),
            ("Are failures cached?", "Failures are kept for a minute."),
            ("What does clear do?", "`clear()` keeps what is in use."),
        ),
    ),
)


def main() -> None:
    """Judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    counts = Counter[str]()
    for statement, faithful, drifted in SETS:
        goal = make_brief("t", statement, 1.0, 0).goal
        for kind, answers in (("faithful", faithful), ("drifted", drifted)):
            for question, text in answers:
                faults = find_faults(Answer(goal, goal.begin(), (), question, text, statement))
                wrong = bool(faults) == (kind == "faithful")
                counts[kind] += 1
                counts[f"{kind}, judged wrong"] += wrong
                if wrong:
                    print(f"{kind}: {text!r}: {', '.join(faults) or 'nothing found'}")
    figures = {name: float(count) for name, count in sorted(counts.items())}
    for name, value in figures.items():
        print(f"{name:24} {value:.0f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
