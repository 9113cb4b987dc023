"""A run folder -> report.html, one self-contained page; reads the journal and the summaries, knows nothing of how a run works."""

import html
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from .alarms import Alarm, describe_alarm, find_alarms
from .charts import line_chart, number
from .journal import EpisodeRow, Journal
from .results import Results, load_results
from .types import Episode, Turn

EPISODES_WITH_TURNS = 200
"""The newest of them; a page with every turn of a long run would not open."""
TEXT_LIMIT = 3000

STYLE = """
:root{--ink:#1c2321;--soft:#5d6b66;--line:#dfe5e2;--paper:#fbfcfb;--card:#fff;--green:#1a7f4b;--red:#b3402e;--amber:#96690b}
@media(prefers-color-scheme:dark){:root{--ink:#e4ebe7;--soft:#93a29b;--line:#2b3531;--paper:#121715;--card:#19201d;--green:#52c58a;
--red:#e8806d;--amber:#d9ab4a}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1080px;padding:32px 20px 80px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}h1{font-size:26px;margin:0}h2{font-size:17px;margin:36px 0 10px}
p.sub{color:var(--soft);margin:4px 0 0;overflow-wrap:anywhere}.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th{text-align:left;color:var(--soft);font-weight:500;font-size:13px}
th,td{padding:6px 12px 6px 0;border-bottom:1px solid var(--line);white-space:nowrap}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));gap:12px}
.chart{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px}
figcaption{display:flex;justify-content:space-between;gap:8px;font-size:13px;overflow-wrap:anywhere}
svg{width:100%;height:auto;display:block}svg line{stroke:var(--line)}svg text{fill:var(--soft);font-size:10px}
polyline{fill:none;stroke:var(--green);stroke-width:2;stroke-linejoin:round}circle{fill:var(--green)}
.bar{background:var(--line);height:8px;border-radius:4px;min-width:120px}
.bar i{display:block;height:8px;border-radius:4px;background:var(--green)}
details{border-bottom:1px solid var(--line)}summary{cursor:pointer;padding:7px 0;display:flex;gap:14px;flex-wrap:wrap}
summary::before{content:"\\25B8";color:var(--soft)}details[open]>summary::before{content:"\\25BE"}
.resolved{color:var(--green)}.infra{color:var(--amber)}.other{color:var(--red)}.soft{color:var(--soft)}
.turn{margin:0 0 12px 18px}pre{margin:4px 0;padding:10px;background:var(--card);border:1px solid var(--line);border-radius:6px;
white-space:pre-wrap;overflow-wrap:anywhere;font:12.5px/1.45 ui-monospace,monospace}pre.seen{color:var(--soft);border-style:dashed}
"""


def write_report(run: Path, target: Path | None = None) -> Path:
    """Write the page (default RUN/report.html) and return where it is; FileNotFoundError when RUN is no run folder."""
    target = target or run / "report.html"
    with Journal(run, readonly=True) as journal:
        rows = journal.rows()
        newest = [journal.episode(row.episode_id) for row in rows[-EPISODES_WITH_TURNS:]]
        sections = [
            _results(evaluations(run)),
            _alarms(find_alarms(journal.steps())),
            _curves(journal.steps()),
            _phases([(phase.name, phase.seconds) for phase in journal.phases()]),
            _episodes(rows, newest),
        ]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_text(run.resolve().name)} - greengrad</title><style>{STYLE}</style>"
        f"<h1>{_text(run.resolve().name)}</h1>{_origin(run)}{''.join(sections)}</html>\n"
    )
    part = target.with_name(target.name + ".part")
    part.write_text(page, encoding="utf-8", errors="replace")
    os.replace(part, target)
    return target


def evaluations(run: Path) -> dict[str, Results]:
    """The finished evaluations in a run folder, by folder, in the order in which they finished."""
    folders = [run, *(path for path in run.iterdir() if path.is_dir())]
    found = [(folder, load_results(folder)) for folder in folders]
    done = [(folder, results) for folder, results in found if results is not None]
    done.sort(key=lambda pair: (pair[0] / "summary.json").stat().st_mtime)
    return {"." if folder == run else folder.name: results for folder, results in done}


def _origin(run: Path) -> str:
    path = run / "manifest.json"
    if not path.is_file():
        return ""
    manifest = json.loads(path.read_text(encoding="utf-8"))
    machine = manifest["machine"]
    text = f"{machine['cores']} cores, {machine['memory_mb'] / 1024:.0f} GiB, Python {manifest['python']}"
    versions = ", ".join(f"{name} {version}" for name, version in manifest["packages"].items())
    return f'<p class="sub">{_text(text)}; commit {_text(manifest["commit"][:12] or "unknown")}; {_text(versions)}</p>'


def _results(found: dict[str, Results]) -> str:
    if not found:
        return ""
    body = [[name, results.policy, *results.row().values()] for name, results in found.items()]
    return "<h2>Evaluations</h2>" + _table(["", "policy", *next(iter(found.values())).row()], body)


def _alarms(found: Sequence[Alarm]) -> str:
    lines = "".join(f"<p class=infra>{_text(describe_alarm(alarm))}</p>" for alarm in found)
    return f"<h2>Look at this</h2>{lines}" if lines else ""


def _curves(steps: dict[int, dict[str, float]]) -> str:
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for step, metrics in steps.items():
        for key, value in metrics.items():
            series[key].append((step, value))
    charts = "".join(line_chart(key, points) for key, points in sorted(series.items()))
    return f'<h2>Curves</h2><div class="charts">{charts}</div>' if charts else ""


def _phases(phases: Sequence[tuple[str, float]]) -> str:
    if not phases:
        return ""
    longest = max(seconds for _, seconds in phases) or 1.0
    rows = "".join(
        f'<tr><td>{_text(name)}<td>{seconds:,.0f} s<td style="width:60%"><div class="bar"><i style="width:{100 * seconds / longest:.0f}%">'
        "</i></div>"
        for name, seconds in phases
    )
    return f'<h2>Phases</h2><div class="scroll"><table><tr><th>phase<th>wall time<th>{rows}</table></div>'


def _episodes(rows: Sequence[EpisodeRow], newest: Sequence[Episode]) -> str:
    if not rows:
        return ""
    steps = {row.episode_id: row.step for row in rows}
    left_out = f"; the newest {len(newest)} are shown" if len(newest) < len(rows) else ""
    head = f'<h2>Episodes</h2><p class="sub">{len(rows)} recorded{left_out}</p>'
    return head + "".join(_episode(episode, steps[episode.episode_id]) for episode in reversed(newest))


def _episode(episode: Episode, step: int) -> str:
    outcome = episode.verdict.outcome.value if episode.verdict else "not graded"
    kind = outcome if outcome in ("resolved", "infra") else "other"
    summary = (
        f"<span>{_text(episode.instance_id)}</span><span class={kind}>{outcome}</span>"
        f'<span class="soft">step {step}, {len(episode.turns)} turns, {episode.stop.value}, {number(round(episode.seconds, 1))} s</span>'
        f'<span class="soft">{_text(episode.episode_id)}</span>'
    )
    reason = episode.error or (episode.verdict.reason if episode.verdict else "")
    ending = f'<p class="soft">{_text(reason)}</p>' if reason else ""
    patch = f"<p>Patch</p><pre>{_text(episode.patch)}</pre>" if episode.patch else ""
    return f"<details><summary>{summary}</summary>{''.join(_turns(episode.turns))}{ending}{patch}</details>"


def _turns(turns: Sequence[Turn]) -> Iterable[str]:
    for number_of, turn in enumerate(turns, start=1):
        tokens = f"{len(turn.prompt):,} + {len(turn.completion.ids):,} tokens, weights {turn.completion.version}"
        yield (
            f'<div class="turn"><span class="soft">turn {number_of}: {tokens}</span><pre>{_text(turn.completion.text)}</pre>'
            f'<pre class="seen">{_text(turn.observation)}</pre></div>'
        )


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = "".join(f"<tr>{''.join(f'<td>{_text(cell)}' for cell in row)}" for row in body)
    return f'<div class="scroll"><table><tr>{"".join(f"<th>{_text(cell)}" for cell in head)}{rows}</table></div>'


def _text(value: str) -> str:
    """Escaped, and cut where it is very long."""
    if len(value) > TEXT_LIMIT:
        value = f"{value[:TEXT_LIMIT]}\n[... {len(value) - TEXT_LIMIT} characters left out ...]"
    return html.escape(value)
