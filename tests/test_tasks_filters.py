"""Which tasks of a suite are used: filters as a pure function, in the configuration, and in `greengrad tasks list`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.actor import choose_tasks
from pipeline.cli import main
from pipeline.config import TasksConfig
from tasks import Filter, choose, language, load_suite, patch_lines, repository
from tasks.filters import PAPER, why_not
from tasks.patches import diff_text

VERIFIED = Path(__file__).parent / "data" / "verified_slice.parquet"
SUITE = load_suite(VERIFIED)
FLASK = next(task for task in SUITE.tasks if task.repo == "pallets/flask")


def names(wanted: Filter) -> set[str]:
    return {task.repo.split("/")[1] for task in choose(SUITE.tasks, wanted)[0]}


def test_a_filter_keeps_what_it_names_and_counts_the_rest():
    assert names(Filter()) == {task.repo.split("/")[1] for task in SUITE.tasks} and len(SUITE.tasks) == 12
    assert names(Filter(repositories=("Pallets/Flask", "sympy/sympy"))) == {"flask", "sympy"}
    assert names(Filter(avoid=("pallets/flask",))) == names(Filter()) - {"flask"}
    kept, dropped = choose(SUITE.tasks, Filter(difficulties=("<15 min fix",), max_files=1))
    assert kept and all(task.difficulty == "<15 min fix" and len(task.files) == 1 for task in kept)
    assert dropped.total() == len(SUITE.tasks) - len(kept) and set(dropped) <= {"difficulty", "files"}
    assert not choose(SUITE.tasks, Filter(languages=("go",)))[0] and names(Filter(languages=("Python",))) == names(Filter())


def test_the_sizes_of_the_paper_are_fewer_than_500_lines_in_at_most_7_files():
    def sized(lines: int, files: int) -> str:
        parts = [diff_text(f"f{number}.py", None, "x\n" * (lines // files + (number < lines % files))) for number in range(files)]
        return why_not(replace(FLASK, gold_patch="".join(parts), files=tuple(f"f{number}.py" for number in range(files))), PAPER)

    assert [sized(499, 1), sized(500, 1), sized(20, 7), sized(20, 8)] == ["", "patch lines", "", "files"]


def test_lines_are_counted_in_hunks_alone():
    patch = diff_text("a.py", "-- x\na\nb\n", "++ y\na\nc\n") + diff_text("b.py", None, "1\n2\n")
    assert patch_lines(patch) == 6 and patch_lines("") == 0


def test_a_language_is_the_rows_own_or_that_of_most_files():
    assert language(replace(FLASK, language="Go")) == "go"
    assert language(replace(FLASK, files=("a.rs", "b.rs", "c.md"))) == "rust"
    assert language(replace(FLASK, files=("Makefile",))) == "unknown"


def test_a_mirror_counts_as_the_repository_that_it_mirrors():
    mirror = replace(FLASK, repo="swesmith/pallets__flask.bc098406")
    assert repository(mirror) == "pallets/flask"
    assert why_not(mirror, Filter(avoid=("pallets/flask",))) == "in an evaluation"


def test_a_run_uses_the_tasks_that_its_configuration_leaves(tmp_path):
    def chosen(**keys: object) -> set[str]:
        return {task.repo for task in choose_tasks(TasksConfig.model_validate({"suite": VERIFIED, **keys}), None)}

    everything = chosen()
    assert chosen(repositories=["pallets/flask"]) == {"pallets/flask"}
    assert chosen(max_patch_lines=3) < everything
    assert chosen(difficulties=["<15 min fix"]) < everything and chosen(languages=["python"]) == everything
    other = tmp_path / "other.jsonl"
    row = {"instance_id": "x", "repo": "pallets/flask", "base_commit": "", "patch": "", "test_patch": "", "problem_statement": ""}
    row |= {"FAIL_TO_PASS": [], "PASS_TO_PASS": [], "eval_script": "", "log_parser": "", "image": "x"}
    other.write_text(json.dumps(row))
    assert chosen(decontaminate=[other]) == everything - {"pallets/flask"}
    other.write_text(json.dumps(row | {"patch": diff_text("a", None, "x\n") + diff_text("b", None, "x\n")}))
    with pytest.raises(ValueError, match="1 by files"):
        choose_tasks(TasksConfig(suite=other, max_files=1), None)
    with pytest.raises(ValueError, match=r"the filters of `tasks` leave no task \(12 by language\)"):
        chosen(languages=["cobol"])


def test_the_list_counts_what_there_is_and_names_what_is_broken(capsys, tmp_path):
    assert main(["tasks", "list", str(VERIFIED), "--max-patch-lines", "3", "--language", "python"]) == 0
    text = capsys.readouterr().out
    assert "language" in text and "left out" in text and "by patch lines" in text and "all of them" in text and "median" in text
    (tmp_path / "rows.jsonl").write_text('{"instance_id": "a__b-1", "repo": "a/b"}\n')
    assert main(["tasks", "list", str(tmp_path / "rows.jsonl")]) == 1
    assert "a__b-1: test_patch: missing" in capsys.readouterr().err
    assert main(["tasks", "list", str(tmp_path / "none.jsonl")]) == 2 and "no task suite" in capsys.readouterr().err
