"""Plans, runs, episodes and tasks as text for a terminal; computes nothing."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks import Task, Validation, language, patch_lines

from .alarms import describe_alarm, find_alarms
from .charts import number
from .compare import Comparison
from .cost import Cost
from .curriculum import Record, histogram
from .doctor import Check
from .goal import Heard
from .journal import Journal, Phase
from .plan import GB, Plan
from .results import Results
from .task_state import MARKS, conclude
from .types import Episode

LAST_EPISODES = 30
KINDS = 8
"""Of one row of counts."""
COLOURS = {"resolved": "green", "infra": "yellow"}


def print_plan(plan: Plan) -> None:
    """Sizes, memory by phase, time, notes."""
    console = _console()
    for key, value in plan.sizes.items():
        console.print(f"[bold]{key:>10}[/]  {escape(value)}")
    for phase in plan.phases:
        table = Table(title=f"memory of phase {phase!r} on {plan.device}", title_justify="left", box=None, pad_edge=False)
        table.add_column("what", width=84)
        table.add_column("GB", justify="right")
        for row in plan.rows:
            if row.phase == phase:
                table.add_row(escape(row.what), f"{row.size / GB:.2f}")
        table.add_row("[bold]sum[/]", f"[bold]{plan.total(phase) / GB:.2f}[/]", end_section=True)
        console.print()
        console.print(table)
        console.print(_fits(plan, phase))
    if plan.cost:
        console.print()
        console.print(_cost(plan.cost))
    for note in plan.notes:
        console.print(f"note: {escape(note)}", style="dim")


def _cost(cost: Cost) -> Table:
    """A step's time and what it needs."""
    rollout, work = cost.rollout, cost.work
    sampled = work.episodes * work.turns * work.sampled
    tail = f", {rollout.tail:,.0f} s of it the longest episode alone" if rollout.tail else ""
    again = f", {100 * rollout.again:.0f} % of a context prefilled anew each turn" if rollout.again else ""
    how = f"{rollout.engines} engines x {rollout.decoding:.1f} requests at once, decoding waits for {rollout.bound}{again}{tail}"
    body = [
        ("rollout", f"{rollout.seconds:,.0f}", how),
        ("grade", f"{cost.grade:,.1f}", f"after the last episode; {cost.graders:.1f} graders busy meanwhile"),
        ("learn", f"{cost.learn:,.0f}", f"{cost.computed:,.0f} tokens computed, {cost.trained:,.0f} with loss"),
        ("publish", f"{cost.publish:,.1f}", ""),
        ("[bold]step[/]", f"[bold]{cost.step:,.0f}[/]", f"{sampled:,.0f} tokens sampled, {sampled / cost.step:,.0f} a second"),
        ("machines", "", f"{rollout.in_flight:,.0f} in flight, {work.episodes / rollout.seconds:,.2f} episodes a second"),
    ]
    return _table("time of a step, by formula", ["", "s", "how"], body)


def _fits(plan: Plan, phase: str) -> str:
    if plan.capacity is None:
        return "capacity unknown"
    if plan.total(phase) <= plan.capacity:
        return f"[green]fits[/] into {plan.capacity / GB:.1f} GB"
    return f"[red]does not fit[/] into {plan.capacity / GB:.1f} GB: {(plan.total(phase) - plan.capacity) / GB:.1f} GB too much"


def print_run(journal: Journal, evaluations: Mapping[str, Results]) -> None:
    """Evaluations, steps, phases and the newest episodes."""
    console = _console()
    if evaluations:
        print_results(evaluations)
    if phases := journal.phases():
        print_phases(phases)
    if steps := journal.steps():
        console.print(_steps(steps))
    for alarm in find_alarms(steps):
        console.print(f"[yellow]look at this[/]: {escape(describe_alarm(alarm))}", soft_wrap=True)
    rows = journal.rows()
    columns = ["episode", "step", "stop", "outcome", "turns", "seconds"]
    body = [(r.episode_id, str(r.step), r.stop, _coloured(r.outcome), str(r.turns), f"{r.seconds:.1f}") for r in rows[-LAST_EPISODES:]]
    console.print(_table(f"episodes ({len(body)} newest of {len(rows)})", columns, body))


def print_results(evaluations: Mapping[str, Results]) -> None:
    """One column an evaluation, one row a figure."""
    rows = {name: results.row() for name, results in evaluations.items()}
    keys = list(next(iter(rows.values())))
    body = [(key, *(row[key] for row in rows.values())) for key in keys]
    _console().print(_table("evaluations", ["", *rows], body))


def print_comparison(found: Comparison, a: str, b: str) -> None:
    """Rates, difference with its interval, the test, and the tasks that changed."""
    gain = found.difference
    body = [
        (f"A  {escape(a)}", f"{100 * found.rate_a:.1f} %"),
        (f"B  {escape(b)}", f"{100 * found.rate_b:.1f} %"),
        ("B - A (95 %, paired bootstrap over tasks)", f"{100 * gain.mean:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"),
        ("tasks that only B solves / only A (McNemar, exact)", f"{gain.only_b} / {gain.only_a}, p = {gain.p:.3g}"),
    ]
    if any(found.infra):
        body.append(("without a verdict in A / in B: counted as not solved", f"{found.infra[0]} / {found.infra[1]}"))
    if any(found.missing):
        body.append(("tasks that only A has / only B: left out", f"{found.missing[0]} / {found.missing[1]}"))
    _console().print(_table(f"{found.tasks} tasks in both", ["", ""], body))
    for title, names in (("won by B", found.won), ("lost by B", found.lost)):
        if names:
            _console().print(f"{title}: {', '.join(names)}", style="dim")


def print_curriculum(records: Sequence[Record]) -> None:
    """Tasks by how often they were solved, and what the second stage's rule makes of them."""
    counts = histogram(records)
    widest = max(counts.values(), default=1) or 1
    body = [(name, str(count), "#" * round(40 * count / widest)) for name, count in counts.items()]
    _console().print(
        _table(f"{len(records)} tasks, {sum(len(r.solved) for r in records)} attempts with a verdict", ["solved", "tasks", ""], body)
    )
    fates = Counter(record.fate for record in records)
    _console().print(", ".join(f"{fates[name]} {name}" for name in ("kept", "never solved", "too easy")), style="dim")


def print_phases(phases: Sequence[Phase]) -> None:
    """Wall time of each, with its notes."""
    keys = list(dict.fromkeys(key for phase in phases for key in phase.notes))
    body = [
        (phase.name, f"{phase.seconds:,.0f} s", *(number(phase.notes[key]) if key in phase.notes else "" for key in keys))
        for phase in phases
    ]
    total = ("[bold]sum[/]", f"[bold]{sum(phase.seconds for phase in phases):,.0f} s[/]", *("" for _ in keys))
    _console().print(_table("phases", ["phase", "wall time", *keys], [*body, total]))


def _steps(steps: Mapping[int, Mapping[str, float]]) -> Table:
    """The metrics that people look at first, where they were recorded."""
    wanted = ["reward/resolved", "reward/mean", "batch/mixed_groups", "loss/entropy", "optim/grad_norm", "eval/resolved", "train/version"]
    keys = [key for key in wanted if any(key in metrics for metrics in steps.values())]
    body = [(str(step), *(number(metrics[key]) if key in metrics else "-" for key in keys)) for step, metrics in steps.items()]
    return _table("steps (all metrics: metrics.jsonl)", ["step", *keys], body)


def print_episode(episode: Episode, files: Sequence[str] = ()) -> None:
    """Every turn: what was said, what came back, then the verdict and how far it came; `files`: those that the gold patch changes."""
    console = _console()
    for place, turn in enumerate(episode.played, start=1):
        whose = "recorded before" if place <= len(episode.prefix) else f"weights {turn.completion.version}"
        console.rule(f"turn {place}: {len(turn.prompt)} + {len(turn.completion.ids)} tokens, {whose}", align="left")
        console.print(escape(turn.completion.text))
        console.print(escape(turn.observation), style="dim")
        if turn.heard:
            console.print(escape(_goal(turn.heard)), style="dim italic")
    verdict = episode.verdict
    console.rule(f"{episode.stop.value}: {verdict.outcome.value if verdict else 'not graded'}", align="left")
    console.print(escape(_progress(episode, files)), style="dim")
    why = episode.scored.why if episode.scored else ""
    for text in (episode.error, verdict.reason if verdict else "", why, episode.patch):
        if text:
            console.print(escape(text))


def _goal(heard: Heard) -> str:
    """How the user's goal stands, in one line."""
    states = ", ".join(f"{kind.value} {state.value}" for kind, state in heard.states)
    return f"[the user: {states}{''.join(f'; {fault.value}' for fault in heard.faults)}]"


def _progress(episode: Episode, files: Sequence[str]) -> str:
    """Each mark with its turn."""
    state = conclude(episode, files)
    turns = {name: getattr(state, name) for name in MARKS}
    told = [f"{name.replace('_', ' ')} {'-' if turn is None else f'turn {turn}'}" for name, turn in turns.items()]
    unknown = " (localised: the task's files are not known here)" if not files else ""
    return f"came so far (decides nothing): {', '.join(told)}{unknown}"


def print_checks(checks: Sequence[Check]) -> None:
    """One line a check."""
    body = [(check.name, "[green]yes[/]" if check.ok else "[yellow]no[/]", escape(check.detail)) for check in checks]
    _console().print(_table("greengrad doctor", ["what", "works", "detail"], body))


def print_validations(found: Sequence[Validation]) -> None:
    """One line a task that is not sound, and how many are."""
    for one in found:
        if not one.sound:
            print(f"{one.instance_id}: {'no verdict' if one.failed else 'not sound'}: {one.why_not}")
    seconds = sorted(one.seconds for one in found)
    memory = [one.memory_mb for one in found if one.memory_mb is not None]
    named, failed = sum(one.missing_names for one in found), sum(one.failed for one in found)
    print(f"{sum(one.sound for one in found)} of {len(found)} tasks are sound; {failed} have no verdict (infrastructure)")
    print(f"median {median(seconds):.1f} s a task, longest {seconds[-1]:.1f} s" + (f"; at most {max(memory)} MB" if memory else ""))
    if named:
        print(f"{named} have tests that fail only by names that are not there yet (missing_names in lineage.jsonl)")


def print_counts(tasks: Sequence[Task], dropped: Mapping[str, int]) -> None:
    """How many tasks of which kind, and how large they are; what filters left out."""
    kinds: dict[str, Callable[[Task], str]] = {
        "family": lambda task: task.family,
        "split": lambda task: task.split,
        "language": language,
        "difficulty": lambda task: task.difficulty or "not given",
        "repository": lambda task: task.repo,
        "image": lambda task: task.image.name,
        "not usable": lambda task: task.unusable,
    }
    body = [(name, _counts(Counter(kind(task) for task in tasks))) for name, kind in kinds.items()]
    sizes: dict[str, Callable[[Task], int]] = {
        "patch lines": lambda task: patch_lines(task.gold_patch),
        "files": lambda task: len(task.files),
        "fail to pass": lambda task: len(task.fail_to_pass),
        "pass to pass": lambda task: len(task.pass_to_pass),
    }
    body += [(name, _spread([size(task) for task in tasks])) for name, size in sizes.items() if tasks]
    body += [("left out", ", ".join(f"{count} by {reason}" for reason, count in dropped.items()))] if dropped else []
    _console().print(_table(f"{len(tasks)} tasks", ["", ""], [(name, escape(text)) for name, text in body if text]))


def _counts(found: Counter[str]) -> str:
    """The most frequent first; what is counted under no name is left out."""
    named = [(name, count) for name, count in found.most_common() if name]
    if len(named) > KINDS and named[0][1] == 1:
        return f"{len(named)} different ones"
    told = ", ".join(f"{name} {count}" for name, count in named[:KINDS])
    return told + (f" and {len(named) - KINDS} more" if len(named) > KINDS else "")


def _spread(values: Sequence[int]) -> str:
    return f"median {median(values):g}, largest {max(values)}, sum {sum(values)}"


def print_tasks(tasks: Sequence[Task], most: int | None = None) -> None:
    """One line a task, of the first `most`."""
    shown = tasks[:most]
    body = [(t.instance_id, t.split, t.repo, str(len(t.fail_to_pass)), str(len(t.pass_to_pass)), ", ".join(t.files)) for t in shown]
    title = f"the first {len(shown)} of {len(tasks)} (--all shows all)" if len(shown) < len(tasks) else "all of them"
    _console().print(_table(title, ["instance", "split", "repository", "fail to pass", "pass to pass", "files"], body))


def _coloured(outcome: str | None) -> str:
    text = outcome or "not graded"
    return f"[{COLOURS.get(text, 'red')}]{text}[/]"


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=place == 0)
    for row in rows:
        table.add_row(*row)
    return table


def _console() -> Console:
    """In a pipe lines are not cut to a terminal's width."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)
