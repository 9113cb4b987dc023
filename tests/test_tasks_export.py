"""`greengrad tasks export`: what other tools' own loaders and ours read back; rewards that equal the official verdict."""

import importlib.util
import json
import lzma
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox import Limits, Pool
from tasks import Outcome, Suite, Task, grade, load_suite, toy_suite
from tasks.base import Rule
from tasks.export import export_suite, task_row
from tasks.swebench import END, START, instance_row
from tasks.toy import REQUIREMENTS

ROOT = Path(__file__).parents[1]
REWARD = ROOT / "tasks" / "inside" / "harbor_reward.py"
CASES = json.loads(lzma.decompress((ROOT / "tests" / "data" / "parity.json.xz").read_bytes()))


def load_reward():
    spec = importlib.util.spec_from_file_location("harbor_reward", REWARD)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reward = load_reward()


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> Suite:
    return toy_suite(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def public() -> Suite:
    """Real rows of SWE-bench: twelve of Verified."""
    return load_suite(ROOT / "tests" / "data" / "verified_slice.parquet")


def export(suite: Suite, form: str, out: Path) -> Path:
    assert export_suite(suite, form, out).left_out == {}
    return out


# --- rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_our_reader_takes_exported_rows_of_swe_bench_back_as_they_were(public, tmp_path, form):
    out = export(public, form, tmp_path / "out")
    assert len(public.tasks) == 12
    assert load_suite(out / f"test.{form}").tasks == public.tasks


@pytest.mark.parametrize("form", ["jsonl", "parquet", "hf"])
def test_the_loader_of_swebench_reads_them_and_makes_its_specs(toys, public, tmp_path, form, monkeypatch):
    from swebench.harness.utils import load_swebench_dataset, make_test_spec

    tasks = (*toys.tasks, *public.tasks)
    out = export(replace(toys, tasks=tasks), form, tmp_path / "out")
    for split in ("train", "test"):
        wanted = {task.instance_id: task for task in tasks if task.split == split}
        name = out / f"{split}.jsonl" if form == "jsonl" else out
        rows = load_swebench_dataset(str(name), split)
        assert [row["instance_id"] for row in rows] == list(wanted) != []
        for row in rows:
            task = wanted[row["instance_id"]]
            expected = make_test_spec(instance_row(replace(task, image=replace(task.image, name=row["image"]))))
            assert make_test_spec(row) == expected
            assert (row["patch"], row["problem_statement"]) == (task.gold_patch, task.problem_statement)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_load_dataset_finds_the_splits_of_a_folder(toys, tmp_path, form):
    from datasets import load_dataset

    tasks = (*toys.tasks[:2], replace(toys.tasks[2], split="dev"))
    out = export(replace(toys, tasks=tasks), form, tmp_path / "out")
    found = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {split: rows["instance_id"] for split, rows in found.items()} == {
        "train": [task.instance_id for task in tasks[:2]],
        "dev": [tasks[2].instance_id],
    }


def test_load_from_disk_reads_the_saved_data_set(toys, tmp_path):
    from datasets import load_from_disk

    found = load_from_disk(str(export(toys, "hf", tmp_path / "out")))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 2, "test": 1}
    assert found["test"][0] == task_row(toys.tasks[2])


def test_line_separators_and_line_ends_in_texts_survive(toys, tmp_path):
    odd = "a\u2028b\x85c\x0bd\r\ne\x1cf\x00"
    tasks = [replace(task, problem_statement=odd, gold_patch=odd, split="test") for task in toys.tasks]
    for form in ("jsonl", "parquet"):
        from swebench.harness.utils import load_swebench_dataset

        out = export(replace(toys, tasks=tuple(tasks)), form, tmp_path / form)
        path = out / f"test.{form}"
        assert [task.gold_patch for task in load_suite(path).tasks] == [odd] * 3
        assert [row["patch"] for row in load_swebench_dataset(str(path))] == [odd] * 3


def test_a_task_of_ours_names_the_image_that_its_dockerfile_makes(toys):
    assert task_row(toys.tasks[0])["image"] == "swebench/sweb.eval.x86_64.greengrad_1776_toy-add:latest"


def test_what_a_row_cannot_say_is_left_out_with_the_reason(toys, tmp_path):
    first, second, third = toys.tasks
    odd = (
        replace(first, rule=Rule.PASSED_SET, family="r2e_gym"),
        replace(second, problem_statement="\ud800"),
        third,
        replace(third, instance_id="leaks", unusable="its fix is in the image"),
        replace(third, instance_id="no-parser", log_parser="greengrad_reward"),
    )
    found = export_suite(replace(toys, tasks=odd), "parquet", tmp_path / "out")
    assert found.written == 1 and sorted(found.left_out) == sorted([first.instance_id, second.instance_id, "leaks", "no-parser"])
    assert "r2e_gym is graded by the rule passed_set" in found.left_out[first.instance_id]
    with pytest.raises(ValueError, match=r"no task to export \(leaks: its fix is in the image"):
        export_suite(replace(toys, tasks=odd[3:]), "jsonl", tmp_path / "none")
    assert not (tmp_path / "none").exists()


# --- Harbor ----------------------------------------------------------------------------------------------------


def test_a_harbor_folder_has_what_the_schema_names(toys, tmp_path):
    folder = export(toys, "harbor", tmp_path / "out") / "greengrad__toy-add"
    config = tomllib.loads((folder / "task.toml").read_text())
    assert config["schema_version"] == "1.4" and config["task"]["name"] == "greengrad/greengrad__toy-add"
    assert config["verifier"]["timeout_sec"] == 60.0 and "docker_image" not in config["environment"]
    assert (folder / "environment" / "requirements.txt").read_text().split() == list(REQUIREMENTS)
    assert (folder / "solution" / "gold.patch").read_text() == toys.tasks[0].gold_patch
    assert (folder / "tests" / "test.sh").stat().st_mode & 0o111 and (folder / "solution" / "solve.sh").stat().st_mode & 0o111
    assert "def test_add" not in (folder / "instruction.md").read_text() + (folder / "environment" / "Dockerfile").read_text()


def test_an_official_image_is_named_and_our_reader_takes_it(public, tmp_path):
    out = export(public, "harbor", tmp_path / "out")
    back = {task.instance_id: task for task in load_suite(out).tasks}
    assert sorted(back) == sorted(task.instance_id for task in public.tasks)
    for task in public.tasks:
        assert back[task.instance_id].image == task.image and back[task.instance_id].gold_patch == task.gold_patch
        assert back[task.instance_id].repo == task.repo and back[task.instance_id].difficulty == task.difficulty


@pytest.mark.parametrize("text", ['quo"te', "back\\slash", "new\nline", "\x7f\x01", "ünï\U0001f600", "a]b=c"])
def test_any_text_is_valid_toml(toys, tmp_path, text):
    task = replace(toys.tasks[0], repo=text, difficulty=text, version=text)
    folder = export(replace(toys, tasks=(task,)), "harbor", tmp_path / "out") / task.instance_id
    assert tomllib.loads((folder / "task.toml").read_text(encoding="utf-8"))["metadata"]["repo"] == text


def test_an_instance_id_stays_in_the_folder_and_its_package_name_is_harbors(toys, tmp_path):
    odd = tuple(replace(toys.tasks[0], instance_id=name) for name in ("../../up", "..", "a b/ü", "tasks"))
    out = export(replace(toys, tasks=odd), "harbor", tmp_path / "in" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"] and len(list(out.iterdir())) == 4
    names = [tomllib.loads(path.read_text())["task"]["name"] for path in out.glob("*/task.toml")]
    assert sorted(names) == ["greengrad/a-b", "greengrad/task", "greengrad/tasks", "greengrad/up"]


async def test_the_folder_grades_in_machines_of_ours_as_the_task_does(backend, toys, tmp_path):
    """test.sh, eval.sh and reward.py as they are: gold 1, a wrong change 0."""
    back = load_suite(export(toys, "harbor", tmp_path / "out"))
    limits = Limits(memory_mb=256, pids=64, disk_mb=64, command_seconds=20.0, episode_seconds=300.0)
    assert len(back.tasks) == 3 and back.broken == {}
    async with Pool(backend, limits, 2) as machines:
        for task in back.tasks:
            assert task.image == replace(task.image, name=toys.tasks[0].image.name) and task.requirements == REQUIREMENTS
            gold = await grade(machines, task, task.gold_patch, limits)
            assert gold.outcome is Outcome.RESOLVED, gold
            wrong = "\n".join(f"{line}  # changed" if line.startswith("+    ") else line for line in _wrong(task).split("\n"))
            assert (await grade(machines, task, wrong, limits)).outcome is Outcome.UNRESOLVED


def _wrong(task: Task) -> str:
    """The gold patch with the bug still in it: the removed line comes back."""
    lines = task.gold_patch.split("\n")
    removed = next(line[1:] for line in lines if line.startswith("-    "))
    return "\n".join(f"+{removed}" if line.startswith("+    ") else line for line in lines)


# --- the reward ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['log_parser']}-{case['resolved']}")
def test_the_reward_of_a_real_log_is_its_published_verdict(case, tmp_path, capsys):
    keys = ("instance_id", "log_parser", "FAIL_TO_PASS", "PASS_TO_PASS")
    (tmp_path / "row.json").write_text(json.dumps({key: case[key] for key in keys} | {"eval_type": "pass_and_fail"}))
    (tmp_path / "log").write_text(case["log"])
    reward.main(str(tmp_path / "row.json"), str(tmp_path / "log"))
    assert capsys.readouterr().out == f"{int(case['resolved'])}\n"


names = st.sampled_from(["a::x", "a::y", "a::z[1]", "a::z[2]", "a::z[1", "[1]", "-"])
words = st.sampled_from(["PASSED", "FAILED", "ERROR", "SKIPPED", "XFAIL", "XPASS", "noise"])
lines = st.lists(st.builds("{} {}{}".format, words, names, st.sampled_from(["", " - assert 1", " [50%]"])), max_size=6)


@given(lines, st.lists(names, min_size=1, max_size=2), st.lists(names, max_size=2), st.sampled_from(["", "0", "1"]), st.booleans(), lines)
@settings(max_examples=300, deadline=None)
def test_the_reward_is_the_verdict_of_the_official_functions(tmp_path_factory, inner, fixed, kept, code, ended, outer):
    ending = f": '{END}'\n" if ended else ""
    log = "\n".join([*outer, f": '{START}'", *inner]) + f"\n{ending}" + (f">>>>> Test Exit Code: {code}\n" if code else "")
    row = {"instance_id": "i", "log_parser": "parse_log_pytest", "eval_type": "pass_and_fail", "FAIL_TO_PASS": fixed, "PASS_TO_PASS": kept}
    path = tmp_path_factory.getbasetemp() / "log"
    path.write_text(log)
    assert reward.is_resolved(row, log) is reward.is_resolved_officially(row, str(path))


def test_the_script_needs_nothing_but_python(toys, tmp_path):
    folder = export(toys, "harbor", tmp_path / "out") / "greengrad__toy-add" / "tests"
    ids = json.loads((folder / "row.json").read_text())
    passing = "".join(f"PASSED {test}\n" for test in (*ids["FAIL_TO_PASS"], *ids["PASS_TO_PASS"]))
    for text, wanted in ((passing, "1\n"), ("", "0\n")):
        (tmp_path / "log").write_text(f"+ : '{START}'\n{text}+ : '{END}'\n")
        command = [sys.executable, "-I", "-S", str(folder / "reward.py"), str(folder / "row.json"), str(tmp_path / "log")]
        assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout == wanted


# --- the command -----------------------------------------------------------------------------------------------


def test_the_command_tells_what_it_left_out_and_why(toys, tmp_path):
    good, bad = task_row(toys.tasks[0]), {"instance_id": "bad", "repo": "a/b"}
    (tmp_path / "suite.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\nnot json\n")
    words = ["tasks", "export", str(tmp_path / "suite.jsonl"), "--format", "jsonl", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "pipeline.cli", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stdout.strip() == f"{tmp_path / 'out'}: 1 tasks"
    assert "bad: " in done.stderr and "suite.jsonl:3: malformed JSON" in done.stderr and len(done.stderr.splitlines()) == 2
    again = subprocess.run([sys.executable, "-m", "pipeline.cli", *words], capture_output=True, text=True, timeout=120)
    assert again.returncode == 2 and "is there already and not empty" in again.stderr and len(again.stderr.splitlines()) == 1
