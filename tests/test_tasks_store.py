"""Suites on disk: what we write is read back, also by the official package, and what is broken is named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tasks import load_suite, prepare_suite, toy_suite, write_task
from tasks.base import Prediction
from tasks.predictions import load_predictions, write_predictions
from tasks.swebench import instance_row, official_script


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return toy_suite(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def copy(toys, tmp_path):
    shutil.copytree(toys.path, tmp_path / "suite")
    return tmp_path / "suite"


def test_a_task_written_and_read_is_the_same_task(toys, tmp_path):
    odd = replace(
        toys.tasks[0],
        hints="see #1\n",
        problem_statement="ünï \u2028 line\r\nend",
        version="3.10",
        base_commit="0123456789" * 4,
        gold_patch=toys.tasks[0].gold_patch.replace("\n", "\r\n"),
        fail_to_pass=("a::b[x y - é]", 'a::b["q"]'),
    )
    folder = write_task(tmp_path, odd, "FROM x\n")
    assert load_suite(tmp_path).tasks == (replace(odd, image=replace(odd.image, tree=folder / "tree.tar")),)
    assert (folder / "tree.tar").read_bytes() == odd.image.tree.read_bytes() and not (tmp_path / ".partial" / odd.instance_id).exists()


def test_the_official_package_reads_our_suite_and_finds_nothing_wrong_with_it(toys):
    from swebench.task.checks import check_task_repo
    from swebench.task.repo import load_dockerfiles, load_task_repo, published_tasks

    assert check_task_repo(toys.path) == []
    for task, row in zip(toys.tasks, load_task_repo(toys.path), strict=True):
        ours = instance_row(task)
        assert {key: row[key] for key in ours if key != "image"} == {key: ours[key] for key in ours if key != "image"}
        assert row["greengrad"]["environment"] == task.image.name
        assert load_dockerfiles(toys.path)[task.instance_id].startswith(f"FROM {task.image.name}\n")
    assert {split: len(rows) for split, rows in published_tasks(toys.path)["greengrad/toy"].items()} == {"train": 2, "test": 1}


async def test_the_environments_of_a_suite_are_those_of_its_requirements(toys):
    assert await prepare_suite(toys) == 1
    with pytest.raises(ValueError, match="is not what its requirements make"):
        await prepare_suite(replace(toys, tasks=(replace(toys.tasks[0], requirements=("iniconfig==2.1.0",)),)))


def edit(path, change):
    path.write_text(yaml.safe_dump(change(yaml.safe_load(path.read_text()))))


BROKEN = {
    "tests.json: missing": lambda folder: (folder / "tests.json").unlink(),
    "tests.json: malformed": lambda folder: (folder / "tests.json").write_text('{"FAIL_TO_PASS": ['),
    "PASS_TO_PASS: a list": lambda folder: (folder / "tests.json").write_text('{"FAIL_TO_PASS": [], "PASS_TO_PASS": 3}'),
    "task.yaml: malformed": lambda folder: (folder / "task.yaml").write_text("a: [b"),
    "task.yaml: a mapping": lambda folder: (folder / "task.yaml").write_text("- 1\n"),
    "base_commit: missing": lambda folder: edit(folder / "task.yaml", lambda meta: {k: v for k, v in meta.items() if k != "base_commit"}),
    "repo: text": lambda folder: edit(folder / "task.yaml", lambda meta: meta | {"repo": ["x"]}),
    "greengrad.environment: missing": lambda folder: edit(folder / "task.yaml", lambda meta: meta | {"greengrad": {}}),
    "greengrad.test_seconds: a positive": lambda folder: edit(
        folder / "task.yaml", lambda meta: meta | {"greengrad": meta["greengrad"] | {"test_seconds": "soon"}}
    ),
    "tree.tar: missing": lambda folder: (folder / "tree.tar").unlink(),
    "gold.patch: missing": lambda folder: (folder / "gold.patch").unlink(),
    "eval.sh: cannot be read": lambda folder: (folder / "eval.sh").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("complaint", BROKEN)
def test_a_broken_task_is_named_with_its_field_and_the_others_load(complaint, copy):
    BROKEN[complaint](copy / "tasks" / "greengrad__toy-clamp")
    suite = load_suite(copy)
    assert [task.instance_id for task in suite.tasks] == ["greengrad__toy-add", "greengrad__toy-words"]
    assert list(suite.broken) == ["greengrad__toy-clamp"] and complaint in suite.broken["greengrad__toy-clamp"]


def test_a_missing_suite_says_what_to_do(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="greengrad tasks build small --out"):
            load_suite(path)
    (tmp_path / "rows.csv").write_text("")
    with pytest.raises(ValueError, match=r"a \.jsonl, \.json or \.parquet file"):
        load_suite(tmp_path / "rows.csv")


def test_rows_of_a_jsonl_file_load_and_broken_ones_are_named(toys, tmp_path):
    rows = [instance_row(task) for task in toys.tasks]
    rows[1]["FAIL_TO_PASS"] = json.dumps(rows[1]["FAIL_TO_PASS"])
    del rows[2]["patch"]
    lines = [*map(json.dumps, rows), "", "{torn", "[1]"]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    suite = load_suite(tmp_path / "rows.jsonl")
    assert [task.fail_to_pass for task in suite.tasks] == [task.fail_to_pass for task in toys.tasks[:2]]
    assert suite.tasks[0].image.tree is None
    assert suite.broken[toys.tasks[2].instance_id] == "patch: missing"
    assert "malformed JSON" in suite.broken["rows.jsonl:5"] and "an object" in suite.broken["rows.jsonl:6"]


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "a/b", "..", "", "a\nb", "a\0b", "x" * 201, "é" * 101])
def test_an_id_that_is_no_name_of_a_file_is_refused_because_logs_are_written_below_it(toys, tmp_path, name):
    rows = [instance_row(toys.tasks[0]) | {"instance_id": name}, instance_row(toys.tasks[1])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = load_suite(tmp_path / "rows.jsonl")
    assert [task.instance_id for task in suite.tasks] == [toys.tasks[1].instance_id]
    ((label, told),) = suite.broken.items()
    assert label.isprintable() and "cannot name a file" in told


def test_an_instance_that_comes_twice_in_a_split_is_named_and_in_two_splits_it_may(toys, tmp_path):
    row = instance_row(toys.tasks[0])
    (tmp_path / "rows.json").write_text(json.dumps([row, row | {"split": "dev"}, row]))
    suite = load_suite(tmp_path / "rows.json")
    assert [task.split for task in suite.tasks] == ["test", "dev"]
    assert suite.broken == {row["instance_id"]: f"instance_id: {row['instance_id']} comes more than once in the split test"}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_json_that_is_nested_too_deeply_is_malformed(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text)
    assert "malformed JSON" in load_suite(tmp_path / "rows.jsonl").broken["rows.jsonl:1"]
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(ValueError, match=r"rows\.json: malformed JSON"):
        load_suite(tmp_path / "rows.json")


def test_a_column_that_is_nested_too_deeply_or_holds_half_a_surrogate_pair_is_named(toys, tmp_path):
    row = instance_row(toys.tasks[0])
    odd = [row | {"instance_id": "deep", "FAIL_TO_PASS": "[" * 100_000}, row | {"instance_id": "half", "repo": "a/\ud800"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [*odd, row]))
    suite = load_suite(tmp_path / "rows.jsonl")
    assert len(suite.tasks) == 1 and "FAIL_TO_PASS: malformed JSON" in suite.broken["deep"]
    assert suite.broken["half"] == "repo: holds half a surrogate pair, which no file can"


def test_a_byte_order_mark_is_no_part_of_the_first_row_and_other_encodings_are_told(toys, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(instance_row(toys.tasks[0])), encoding="utf-8-sig")
    assert len(load_suite(tmp_path / "rows.jsonl").tasks) == 1
    (tmp_path / "rows.jsonl").write_text(json.dumps(instance_row(toys.tasks[0])), encoding="utf-16")
    with pytest.raises(ValueError, match=r"rows\.jsonl: not UTF-8 text"):
        load_suite(tmp_path / "rows.jsonl")


def test_real_rows_of_swe_bench_load():
    suite = load_suite(Path(__file__).parent / "data" / "verified_slice.parquet")
    assert len({task.log_parser for task in suite.tasks}) == len(suite.tasks) == 12 and suite.broken == {}
    for task in suite.tasks:
        assert task.image.name.startswith("swebench/sweb.eval.x86_64.") and task.files and task.fail_to_pass
        assert "SWEBENCH_TEST_EXIT_CODE=$?" in official_script(task)


def test_predictions_come_in_the_official_forms(toys, tmp_path):
    wanted = (Prediction("greengrad__toy-add", "m", "diff"), Prediction("greengrad__toy-words", "m", ""))
    rows = [{"instance_id": item.instance_id, "model_name_or_path": "m", "model_patch": item.model_patch or None} for item in wanted]
    write_predictions(tmp_path / "a.jsonl", wanted)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.json").write_text(json.dumps({row["instance_id"]: row for row in rows}))
    for name in ("a.jsonl", "b.json", "c.json"):
        assert load_predictions(tmp_path / name, toys) == wanted


BAD_PREDICTIONS = {
    "1: malformed JSON": "{torn",
    "not in ": '{"instance_id": "who", "model_patch": ""}',
    "model_patch must be": '{"instance_id": "greengrad__toy-add", "model_patch": 3}',
    "instance_id is missing": '{"model_patch": ""}',
    "an object is needed": "3",
    "more than one prediction": '{"instance_id": "greengrad__toy-add", "model_patch": ""}\n' * 2,
}


@pytest.mark.parametrize("complaint", BAD_PREDICTIONS)
def test_bad_predictions_are_refused_in_one_line(complaint, toys, tmp_path):
    (tmp_path / "preds.jsonl").write_text(BAD_PREDICTIONS[complaint])
    with pytest.raises(ValueError, match=complaint) as caught:
        load_predictions(tmp_path / "preds.jsonl", toys)
    assert str(tmp_path / "preds.jsonl") in str(caught.value) and "\n" not in str(caught.value)
