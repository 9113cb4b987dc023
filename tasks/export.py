"""`greengrad tasks export`: a suite into forms that other tools read; knows Harbor's folders by their function alone.

    jsonl, parquet   DIR/<split>.<format> and README.md: rows of SWE-bench 5; swebench and load_dataset take the folder or a file
    hf               DIR/<split>/: the same rows, for load_from_disk
    harbor           DIR/<instance id>/: one Harbor task folder each (export_harbor.py)

A row has no tree: of a suite of ours it names the image that `docker build` makes of tasks/<instance id>, as the official tools do.
A task whose family is graded by a rule of its own cannot be told as a row; it is left out, with the reason.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never

from .base import Rule, Suite, Task
from .drafts import file_name, new_folder
from .export_harbor import write_harbor
from .swebench import instance_row, known_parser, official_image

Form = Literal["harbor", "jsonl", "parquet", "hf"]
Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class TasksExported:
    """What became of a suite's tasks."""

    written: int
    left_out: dict[str, str]
    """Instance id -> why."""


def export_suite(suite: Suite, form: Form, out: Path) -> TasksExported:
    """Write the tasks of a suite that the form can tell; ValueError where there is none, or `out` is in use."""
    reasons = {task.instance_id: reason for task in suite.tasks if (reason := _reason(task))}
    tasks = [task for task in suite.tasks if task.instance_id not in reasons]
    if not tasks:
        first = next(iter(reasons.items()), None)
        raise ValueError(f"{suite.path}: no task to export{f' ({first[0]}: {first[1]})' if first else ''}")
    with new_folder(out) as draft:
        if form == "harbor":
            for task in tasks:
                write_harbor(task, draft / file_name(task.instance_id))
        else:
            _write_rows(tasks, form, draft)
    return TasksExported(len(tasks), reasons)


def task_row(task: Task) -> Row:
    """A row of SWE-bench 5; the lists of tests are JSON text, as in the published data sets."""
    row: dict[str, Any] = instance_row(task)
    if task.image.tree is not None:
        row["image"] = official_image(task.instance_id)
    row |= {"difficulty": task.difficulty, "language": task.language, "split": task.split}
    return {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()}


def _reason(task: Task) -> str:
    """Why a task cannot be told as a row; "" where it can."""
    if task.unusable:
        return task.unusable
    if task.rule is not Rule.OFFICIAL:
        return f"{task.family} is graded by the rule {task.rule.value}, which rows of SWE-bench cannot name"
    if not known_parser(task.log_parser):
        return f"its parser {task.log_parser!r} is not one of the swebench package's"
    try:
        "".join(task_row(task).values()).encode()
    except UnicodeEncodeError:
        return "holds half a surrogate pair, which no file can"
    return ""


def _write_rows(tasks: Sequence[Task], form: Literal["jsonl", "parquet", "hf"], folder: Path) -> None:
    splits: dict[str, list[Row]] = {}
    for task in tasks:
        splits.setdefault(task.split, []).append(task_row(task))
    match form:
        case "jsonl":
            for split, rows in splits.items():
                # ASCII: swebench cuts lines with splitlines(), which cuts at U+2028 and others too
                text = "".join(f"{json.dumps(row)}\n" for row in rows)
                (folder / f"{file_name(split)}.jsonl").write_text(text, encoding="ascii")
        case "parquet":
            _write_parquet(splits, folder)
        case "hf":
            _save_to_disk(splits, folder)
        case _:
            assert_never(form)
    if form != "hf":
        (folder / "README.md").write_text(_card(splits, form), encoding="utf-8")


def _card(splits: dict[str, list[Row]], form: str) -> str:
    """What load_dataset reads of a folder: which file is which split."""
    files = "".join(f"  - split: {json.dumps(split)}\n    path: {json.dumps(f'{file_name(split)}.{form}')}\n" for split in splits)
    return (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n\nRows of SWE-bench 5, written by `greengrad tasks export`.\n"
    )


def _write_parquet(splits: dict[str, list[Row]], folder: Path) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    for split, rows in splits.items():
        schema = pyarrow.schema([(name, pyarrow.large_string()) for name in rows[0]])
        write_table(pyarrow.Table.from_pylist(rows, schema=schema), folder / f"{file_name(split)}.parquet")


def _save_to_disk(splits: dict[str, list[Row]], folder: Path) -> None:
    from datasets import Dataset, DatasetDict, Features, Value, disable_progress_bars

    disable_progress_bars()
    features = Features({name: Value("large_string") for name in next(iter(splits.values()))[0]})
    found = DatasetDict({split: Dataset.from_list(rows, features=features) for split, rows in splits.items()})
    found.save_to_disk(folder)
