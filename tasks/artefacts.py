"""What `eval` and `grade` leave on disk, in the official harness' form, and verdicts read back from it; runs nothing.

    DIR/predictions.jsonl · DIR/report.json (schema version 2, and suspect_ids)
    DIR/logs/<instance_id>/{patch.diff, eval.sh, test_output.txt, report.json, results.json}

results.json is ours and is written last: where it is whole, the instance is done. It holds what the witness saw, and the lists
that the log is graded against, so that `regrade` needs nothing but the folder.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sandbox import Image

from .base import Evidence, Outcome, Prediction, Rule, Suite, Task, Verdict
from .predictions import write_predictions
from .swebench import START, as_log, dump_json, failure_reason, official_script, read_log

_KEPT = ("instance_id", "repo", "version", "base_commit", "log_parser", "eval_type", "test_seconds", "family")
_TUPLES = ("dropped", "kept", "findings", "notes")
_ADVICE = "remove results.json to grade the instance again"


def write_report(out: Path, verdicts: Sequence[Verdict], predictions: Sequence[Prediction], suite: Suite) -> Path:
    """Write all artefacts of a finished evaluation; returns report.json. Instances that write_logs has written are left as they are."""
    tasks = {task.instance_id: task for task in suite.tasks}
    patches = {item.instance_id: item.model_patch for item in predictions}
    for verdict in verdicts:
        if not (out / "logs" / verdict.instance_id / "results.json").exists():
            write_logs(out, tasks[verdict.instance_id], patches.get(verdict.instance_id, ""), verdict)
    out.mkdir(parents=True, exist_ok=True)
    write_predictions(out / "predictions.jsonl", predictions)
    return _replace(out / "report.json", dump_json(summary(verdicts, predictions, [task.instance_id for task in suite.tasks])))


def write_logs(out: Path, task: Task, patch: str, verdict: Verdict) -> None:
    """Write the artefacts of one instance."""
    folder = out / "logs" / task.instance_id
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "patch.diff", patch)
    _replace(folder / "eval.sh", official_script(task))
    if verdict.log:
        late = f"\n\nTimeout error: {task.test_seconds:g} seconds exceeded." if verdict.outcome is Outcome.TESTS_TIMEOUT else ""
        _replace(folder / "test_output.txt", verdict.log + late)
    _replace(folder / "report.json", dump_json(instance_report(task, verdict)))
    _replace(folder / "results.json", dump_json(_results(task, verdict)))


def read_verdicts(out: Path) -> tuple[Verdict, ...]:
    """The verdicts of the instances that are done, as they were recorded (ValueError for a file that is not whole)."""
    return tuple(_saved(folder)[1] for folder in _done(out))


def regrade(out: Path) -> tuple[Verdict, ...]:
    """Verdicts again from the saved logs, by the official parser and the recorded witness; rewrites the reports in place.

    FileNotFoundError where the folder holds no logs. What never came to its tests keeps its verdict.
    """
    if not (folders := _done(out)):
        raise FileNotFoundError(f"no graded instance in {out} (no logs/*/results.json)")
    verdicts = []
    for folder in folders:
        task, verdict = _saved(folder)
        if verdict.outcome is Outcome.RESOLVED and not (folder / "test_output.txt").exists():
            raise ValueError(f"{folder / 'test_output.txt'}: missing, and resolved rests on it; {_ADVICE}")
        verdict = _again(task, verdict)
        _replace(folder / "report.json", dump_json(instance_report(task, verdict)))
        _replace(folder / "results.json", dump_json(_results(task, verdict)))
        verdicts.append(verdict)
    _rewrite_summary(out, verdicts)
    return tuple(verdicts)


def instance_report(task: Task, verdict: Verdict) -> dict[str, Any]:
    """The official report.json of one instance; a SUSPECT is not resolved there, and says so. official_resolved: the harness' own word."""
    if START in verdict.log and verdict.outcome in (Outcome.RESOLVED, Outcome.UNRESOLVED, Outcome.SUSPECT):
        report = read_log(task, verdict.log).report
    else:
        report = {
            task.instance_id: {
                "patch_is_None": False,
                "patch_exists": verdict.outcome is not Outcome.NO_PATCH,
                "patch_successfully_applied": verdict.outcome is Outcome.TESTS_TIMEOUT,
                "resolved": False,
                "infra_failure": verdict.outcome is Outcome.INFRA,
            }
        }
    if verdict.outcome is Outcome.SUSPECT:
        report[task.instance_id] |= {"resolved": False, "suspect": verdict.reason}
    if verdict.official is not None:
        report[task.instance_id] |= {"official_resolved": verdict.official, "evidence": verdict.evidence.value}
    return report


def summary(verdicts: Sequence[Verdict], predictions: Sequence[Prediction], instances: Sequence[str]) -> dict[str, Any]:
    """The run report: the official schema (version 2), and lists of ours: suspect, official_resolved, log_only, audited.

    As there, an infrastructure failure stays in the denominator: its id is in error_ids as well. official_resolved_ids are what the
    official harness' parser says of the same logs; audit_findings holds what held-out tests showed (audit.py), audit_notes what the patch's
    text looks like (detect.py), by instance.
    """
    by_outcome = {outcome: sorted(v.instance_id for v in verdicts if v.outcome is outcome) for outcome in Outcome}
    submitted = sorted(item.instance_id for item in predictions)
    unresolved = [*by_outcome[Outcome.UNRESOLVED], *by_outcome[Outcome.TESTS_TIMEOUT], *by_outcome[Outcome.SUSPECT]]
    reasons = {
        v.instance_id: found[0] for v in verdicts if v.outcome is Outcome.UNRESOLVED and not v.tests and (found := failure_reason(v.log))
    }
    reasons |= {instance_id: "tests_timed_out" for instance_id in by_outcome[Outcome.TESTS_TIMEOUT]}
    lists = {
        "completed": [*by_outcome[Outcome.RESOLVED], *unresolved],
        "incomplete": set(instances) - set(submitted),
        "empty_patch": by_outcome[Outcome.NO_PATCH],
        "submitted": submitted,
        "resolved": by_outcome[Outcome.RESOLVED],
        "unresolved": unresolved,
        "infra_failure": by_outcome[Outcome.INFRA],
        "ambiguous_failure": list(reasons),
        "error": [*by_outcome[Outcome.PATCH_INVALID], *by_outcome[Outcome.INFRA]],
        "suspect": by_outcome[Outcome.SUSPECT],
        "official_resolved": [v.instance_id for v in verdicts if v.official],
        "log_only": [v.instance_id for v in verdicts if v.evidence is Evidence.LOG_ONLY],
        "audited": [v.instance_id for v in verdicts if v.audited],
    }
    reasons |= {v.instance_id: v.reason for v in verdicts if v.outcome is Outcome.INFRA}
    counts = {f"{name}_instances": len(ids) for name, ids in lists.items() if name != "incomplete"}
    ids = {f"{name}_ids": sorted(ids) for name, ids in lists.items()}
    findings = {v.instance_id: list(v.findings) for v in verdicts if v.findings}
    notes = {v.instance_id: list(v.notes) for v in verdicts if v.notes}
    told = {"failure_reasons": dict(sorted(reasons.items())), "audit_findings": findings, "audit_notes": notes}
    return {"total_instances": len(instances), **counts, **ids, **told, "schema_version": 2}


def _rewrite_summary(out: Path, verdicts: Sequence[Verdict]) -> None:
    """report.json again, over the same instances and predictions as before."""
    path = out / "report.json"
    if not path.exists():
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        known, absent = list(old["submitted_ids"]), list(old["incomplete_ids"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a run report ({type(error).__name__}: {error}); the command that made it writes it again") from None
    submitted = [Prediction(instance_id, "", "") for instance_id in known]
    _replace(path, dump_json(summary(verdicts, submitted, [*known, *absent])))


def _again(task: Task, verdict: Verdict) -> Verdict:
    """The verdict on the log as it is now; a doubt that was there stays, and the recorded witness must agree as before."""
    if START not in verdict.log and verdict.outcome is Outcome.RESOLVED:
        reason = "the saved log holds no run of the tests"
        return replace(verdict, outcome=Outcome.UNRESOLVED, reason=reason, tests={}, official=False)
    if START not in verdict.log or verdict.outcome not in (Outcome.RESOLVED, Outcome.UNRESOLVED, Outcome.SUSPECT):
        return verdict
    reading = read_log(task, verdict.log)
    verdict = replace(verdict, tests=reading.tests, official=reading.resolved)
    if not reading.resolved:
        return replace(verdict, outcome=Outcome.UNRESOLVED)
    if verdict.outcome is Outcome.SUSPECT:
        return verdict
    if verdict.evidence is Evidence.WITNESSED and not read_log(task, as_log(verdict.witness)).resolved:
        return replace(verdict, outcome=Outcome.SUSPECT, reason="the log says resolved, but the recorded witness does not")
    return replace(verdict, outcome=Outcome.RESOLVED)


def _results(task: Task, verdict: Verdict) -> dict[str, Any]:
    lists = {"FAIL_TO_PASS": list(task.fail_to_pass), "PASS_TO_PASS": list(task.pass_to_pass)}
    found: dict[str, Any] = {"outcome": verdict.outcome.value, "reason": verdict.reason, "seconds": verdict.seconds}
    found |= {"official": verdict.official, "evidence": verdict.evidence.value, "audited": verdict.audited}
    found |= {name: list(getattr(verdict, name)) for name in _TUPLES}
    rule = {"rule": task.rule.value, "expected": dict(task.expected)}
    return {**{name: getattr(task, name) for name in _KEPT}, **rule, **lists, **found, "tests": verdict.tests, "witness": verdict.witness}


def _task(results: dict[str, Any]) -> Task:
    """As much of the task as its grading needs."""
    return Task(
        **{name: results[name] for name in _KEPT if name in results},
        rule=Rule(results.get("rule", Rule.OFFICIAL.value)),
        expected=tuple(results.get("expected", {}).items()),
        problem_statement="",
        image=Image(""),
        gold_patch="",
        test_patch="",
        eval_script="",
        fail_to_pass=tuple(results["FAIL_TO_PASS"]),
        pass_to_pass=tuple(results["PASS_TO_PASS"]),
    )


def _verdict(folder: Path, results: dict[str, Any]) -> Verdict:
    log = folder / "test_output.txt"
    return Verdict(
        instance_id=results["instance_id"],
        outcome=Outcome(results["outcome"]),
        reason=results["reason"],
        tests=results["tests"],
        seconds=results["seconds"],
        log=log.read_text(encoding="utf-8", errors="replace") if log.exists() else "",
        witness=results["witness"],
        official=results.get("official"),
        evidence=Evidence(results.get("evidence", "")),
        audited=results.get("audited", False),
        **{name: tuple(results.get(name, ())) for name in _TUPLES},
    )


def _done(out: Path) -> list[Path]:
    return sorted(path.parent for path in (out / "logs").glob("*/results.json"))


def _saved(folder: Path) -> tuple[Task, Verdict]:
    """What results.json and the log beside it hold; ValueError where that is not what grading writes."""
    results = _load(folder / "results.json")
    try:
        return _task(results), _verdict(folder, results)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{folder / 'results.json'}: not what grading writes ({what}); {_ADVICE}") from None


def _load(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: malformed JSON ({error}); {_ADVICE}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: an object is needed, found {type(found).__name__}; {_ADVICE}")
    return found


def _replace(path: Path, text: str) -> Path:
    """Write a file, whole or not at all."""
    draft = path.with_name(f".{path.name}.partial")
    draft.write_text(text, encoding="utf-8", errors="replace", newline="")
    os.replace(draft, path)
    return path
