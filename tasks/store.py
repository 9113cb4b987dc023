"""Suites on disk <-> Task: SWE-bench 5 task repositories, Harbor folders, and files of rows; knows no sandbox.

A task repository is the official one (the swebench package reads what is written here), with one more key in task.yaml:

    greengrad: {environment: greengrad/env:<hash>, requirements: [...], test_seconds: 60}   and the tree in tasks/<id>/tree.tar
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from sandbox import Image

from .base import Suite, Task
from .families import harbor, row_task
from .fields import Broken
from .rows import COLUMNS, OURS, ours, parse_row, with_ours
from .sources import is_hub_name, read_rows
from .swebench import official_image

TREE = "tree.tar"
LONGEST_ID = 200
"""Bytes; files and folders of an instance are called after it."""
_FILES = {"gold_patch": "gold.patch", "test_patch": "test.patch", "eval_script": "eval.sh", "problem_statement": "problem_statement.md"}
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_suite(path: str | Path) -> Suite:
    """The tasks of a task repository or of Harbor folders, of a file of rows, or of a data set of the Hugging Face hub (OWNER/NAME).

    What cannot be read goes to Suite.broken. FileNotFoundError where there is no suite at all, ValueError where a file is of another kind.
    """
    path = Path(path)
    if path.is_dir() and (path / "tasks").is_dir():
        return _collect(path, ((folder.name, _read_folder(folder)) for folder in _folders(path)))
    if folders := harbor.task_folders(path):
        return _collect(path, ((folder.name, _caught(harbor.read_task, folder)) for folder in folders))
    if path.is_dir() or (not path.exists() and not is_hub_name(str(path))):
        raise FileNotFoundError(f"no task suite in {path} (no tasks/ folder): build one with `greengrad tasks build small --out {path}`")
    return _collect(path, _rows(str(path)))


def write_config(suite_path: Path, dataset: str, splits: tuple[str, ...]) -> None:
    """sweb.yaml: which data set and splits the suite publishes."""
    suite_path.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({"datasets": [dataset], "splits": list(splits)}, sort_keys=True)
    _write(suite_path / "sweb.yaml.partial", text)
    os.replace(suite_path / "sweb.yaml.partial", suite_path / "sweb.yaml")


def write_task(suite_path: Path, task: Task, dockerfile: str, dataset: str = "greengrad/local") -> Path:
    """Write one task folder, whole or not at all; returns it. The tree is copied into it as tree.tar."""
    partial = suite_path / ".partial" / task.instance_id
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, text in _texts(task, dockerfile, dataset).items():
        _write(partial / name, text)
    if task.image.tree is not None:
        shutil.copyfile(task.image.tree, partial / TREE)
    final = suite_path / "tasks" / task.instance_id
    final.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    return final


def keep_tasks(suite_path: Path, out: Path, instance_ids: Sequence[str]) -> int:
    """Copy these tasks of a task repository into another one; how many it holds then.

    ValueError where the suite is no task repository, or `out` holds another one's tasks.
    """
    if not (suite_path / "tasks").is_dir():
        raise ValueError(f"{suite_path}: only the tasks of a task repository (a folder with tasks/) can be kept")
    config = (suite_path / "sweb.yaml").read_text(encoding="utf-8")
    if (out / "sweb.yaml").exists() and (out / "sweb.yaml").read_text(encoding="utf-8") != config:
        raise ValueError(f"{out} holds the tasks of another suite (sweb.yaml differs): choose another folder or remove it")
    (out / "tasks").mkdir(parents=True, exist_ok=True)
    for name in instance_ids:
        draft = out / ".partial" / name
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(suite_path / "tasks" / name, draft)
        shutil.rmtree(out / "tasks" / name, ignore_errors=True)
        os.replace(draft, out / "tasks" / name)
    shutil.rmtree(out / ".partial", ignore_errors=True)
    _write(out / "sweb.yaml", config)
    return len(_folders(out))


def _texts(task: Task, dockerfile: str, dataset: str) -> dict[str, str]:
    ours: dict[str, Any] = {"environment": task.image.name, "requirements": list(task.requirements), "test_seconds": task.test_seconds}
    meta = {name: getattr(task, name) for name in ("instance_id", "repo", "version", "base_commit", "log_parser", "eval_type", "split")}
    meta |= {"image": official_image(task.instance_id), "datasets": [dataset], OURS: ours}
    tests = {"FAIL_TO_PASS": list(task.fail_to_pass), "PASS_TO_PASS": list(task.pass_to_pass)}
    texts = {name: getattr(task, field) for field, name in _FILES.items()}
    texts |= {"task.yaml": yaml.safe_dump(meta, sort_keys=True), "Dockerfile": dockerfile}
    texts["tests.json"] = json.dumps(tests, indent=2, ensure_ascii=False) + "\n"
    return texts | ({"hints.md": task.hints} if task.hints else {})


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:  # newline="": a CRLF inside a patch stays one
        file.write(text)


def _read(path: Path) -> str:
    with path.open(encoding="utf-8", newline="") as file:
        return file.read()


def _folders(path: Path) -> list[Path]:
    return sorted(folder for folder in (path / "tasks").iterdir() if folder.is_dir())


def _collect(path: Path, found: Iterator[tuple[str, Task | Broken]]) -> Suite:
    tasks: dict[tuple[str, str], Task] = {}
    broken: dict[str, str] = {}
    for name, task in found:
        label = name if name.isprintable() else ascii(name)
        if isinstance(task, Broken):
            broken[label] = str(task)
        elif not _names_a_file(task.instance_id):
            broken[label] = f"instance_id: {task.instance_id!r} cannot name a file (no /, nothing unprintable, at most {LONGEST_ID} bytes)"
        elif (task.split, task.instance_id) in tasks:
            broken[label] = f"instance_id: {task.instance_id} comes more than once in the split {task.split}"
        else:
            tasks[task.split, task.instance_id] = task
    return Suite(path, tuple(tasks.values()), broken)


def _names_a_file(instance_id: str) -> bool:
    """Logs of an instance are written below its id: it must be one name, and no way out of the folder."""
    usual = instance_id.isprintable() and "/" not in instance_id and instance_id not in ("", ".", "..")
    return usual and len(instance_id.encode()) <= LONGEST_ID


def _read_folder(folder: Path) -> Task | Broken:
    try:
        row = _parse(folder, "task.yaml", lambda text: yaml.load(text, _Loader))
        row |= _parse(folder, "tests.json", json.loads)
        for field, name in _FILES.items():
            row[COLUMNS[field]] = _file(folder, name)
        row["hints_text"] = _file(folder, "hints.md") if (folder / "hints.md").exists() else ""
        return with_ours(row_task(row), row, _image(folder, row)) if OURS in row else row_task(row)
    except Broken as broken:
        return broken


def _caught(read: Callable[[Path], Task], folder: Path) -> Task | Broken:
    try:
        return read(folder)
    except Broken as broken:
        return broken


def _file(folder: Path, name: str) -> str:
    try:
        return _read(folder / name)
    except FileNotFoundError:
        raise Broken(f"{name}: missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Broken(f"{name}: cannot be read ({error})") from None


def _parse(folder: Path, name: str, load: Any) -> dict[str, Any]:
    try:
        value = load(_file(folder, name))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise Broken(f"{name}: malformed ({' '.join(str(error).split())})") from None
    if not isinstance(value, dict):
        raise Broken(f"{name}: a mapping is needed, found {type(value).__name__}")
    return value


def _image(folder: Path, row: dict[str, Any]) -> Image:
    """Our environment, and the tree beside the task."""
    environment = ours(row).get("environment")
    if not isinstance(environment, str):
        raise Broken(f"task.yaml: {OURS}.environment: missing")
    if not (folder / TREE).is_file():
        raise Broken(f"{TREE}: missing")
    return Image(environment, folder / TREE)


def _rows(name: str) -> Iterator[tuple[str, Task | Broken]]:
    for label, read in read_rows(name):
        try:
            row = read if isinstance(read, dict) else parse_row(read)
            label = str(row.get("instance_id") or label)
            yield label, row_task(row)
        except Broken as broken:
            yield label, broken
