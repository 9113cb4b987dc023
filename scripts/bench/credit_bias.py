#!/usr/bin/env python3
"""How far the expected gradient of each credit scheme is from the exact one, on the MDP of pipeline/proofs.py.

    python scripts/bench/credit_bias.py [--quick] [--json FILE]

Exact: all groups of G episodes are enumerated, nothing is sampled. cos is the direction, ratio the scale, of E[estimate] with grad E[R]
and with grad E[sum r] (r: R with the last turn, and the change of visible tests with the others). "token mean" divides by the turns of
the group (loss.aggregation token), the other columns by its episodes (constant). Then: the hidden cost of an extra turn, and what
training along the expected gradient comes to.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.proofs import (
    CLAIMS,
    LOGITS,
    Claim,
    ascend,
    compare,
    exact_gradient,
    expected_estimate,
    hidden_cost,
    predicted_bias,
    success,
    sum_rewards,
)

Figures = dict[str, dict[str, float]]


def main() -> None:
    """Compute, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="groups of 2 only, no training")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    sizes = (2,) if options.quick else (2, 4)
    figures = {claim.name: measure(claim, sizes) for claim in CLAIMS}
    show(f"scheme, at E[R] = {success(LOGITS):.3f}", figures)
    costs = {f"G = {size}": measure_cost(size) for size in (*sizes, *([] if options.quick else [5]))}
    show("hidden cost of a turn more", costs)
    trained = {} if options.quick else {claim.name: {"E[R]": success(ascend(claim, 200, 0.5))} for claim in CLAIMS}
    if trained:
        show("after 200 exact steps of 0.5 at G = 2", trained)
    if options.json:
        options.json.write_text(json.dumps({"bias": figures, "hidden_cost": costs, "trained": trained}, indent=1) + "\n")


def measure(claim: Claim, sizes: Sequence[int]) -> dict[str, float]:
    """Cosine and ratio of one scheme, by column."""
    outcome, total = exact_gradient(lambda path: path.reward), exact_gradient(sum_rewards)
    found: dict[str, float] = {}
    for size in sizes:
        estimate = expected_estimate(claim, size)
        found[f"cos R, G={size}"], found[f"ratio R, G={size}"] = compare(estimate, outcome)
        found[f"cos sum r, G={size}"], found[f"ratio sum r, G={size}"] = compare(estimate, total)
    by_token = expected_estimate(claim, sizes[0], token_mean=True)
    found["cos R, token mean"], found["ratio R, token mean"] = compare(by_token, outcome)
    return found


def measure_cost(size: int) -> dict[str, float]:
    """What normalising turns charges for one turn more: over all turns of the group, and by turn index (a closed form)."""
    pooled, mean = hidden_cost(size)
    bias, turns = predicted_bias(size), exact_gradient(lambda path: len(path.states))
    share = float((bias @ bias) ** 0.5 / (exact_gradient(sum_rewards) @ exact_gradient(sum_rewards)) ** 0.5)
    return {"turn_normalised": pooled, "E[r]": mean, "by turn index": float(-bias @ turns / (turns @ turns)), "its bias / gradient": share}


def show(title: str, figures: Figures) -> None:
    """A Markdown table."""
    columns = list(next(iter(figures.values())))
    print(f"| {title} | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for name, row in figures.items():
        print(f"| {name} | {' | '.join(f'{row[column]:.3f}' for column in columns)} |")
    print()


if __name__ == "__main__":
    main()
