"""Numbers -> small SVG line charts for a web page; knows nothing of runs."""

import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 280, 130
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 10, 20


def line_chart(title: str, points: Sequence[tuple[float, float]]) -> str:
    """One metric over steps as a <figure>: a line with a dot for each point, the last value beside the title."""
    points = [(x, y) for x, y in points if math.isfinite(y)]
    if not points:
        return ""
    low, high = _span([y for _, y in points])
    first, last = points[0][0], points[-1][0]
    at = [(_scale(x, first, last, LEFT, WIDTH - RIGHT), _scale(y, low, high, HEIGHT - BOTTOM, TOP)) for x, y in points]
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"><title>step {step:g}: {number(value)}</title></circle>'
        for (x, y), (step, value) in zip(at, points, strict=True)
    )
    name = html.escape(title)
    return (
        f'<figure class="chart"><figcaption>{name}<b>{number(points[-1][1])}</b></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name} over steps">{_axes(low, high, first, last)}'
        f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in at)}"/>{dots}</svg></figure>'
    )


def number(value: float) -> str:
    """A value in few characters: 0.00012, 3.14, 12,345."""
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Where the axis starts and ends: a little around the values; from 0 for what is never negative and near it."""
    low, high = min(values), max(values)
    if low == high:
        return (min(0.0, 2 * low), max(0.0, 2 * high)) if low else (-0.5, 0.5)
    if 0 <= low < 0.4 * high:
        low = 0.0
    return low, high + 0.05 * (high - low)


def _scale(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (value - low) / (high - low) * (end - start) if high > low else (start + end) / 2


def _axes(low: float, high: float, first: float, last: float) -> str:
    lines = []
    for value in (low, (low + high) / 2, high):
        y = _scale(value, low, high, HEIGHT - BOTTOM, TOP)
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{LEFT - 5}" y="{y + 3:.1f}" text-anchor="end">{number(float(f"{value:.2g}"))}</text>')
    lines.append(f'<text x="{LEFT}" y="{HEIGHT - 5}">{first:g}</text>')
    if last > first:
        lines.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{last:g}</text>')
    return "".join(lines)
