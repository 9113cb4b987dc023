"""Public suites, one family after the other: a row becomes a task with its family's rule and image; what is broken is named, the rest
loads."""

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tasks import Outcome, load_suite
from tasks.base import Rule
from tasks.evaluation import Evaluation
from tasks.families import multi_swe_bench, row_task
from tasks.fields import Broken
from tasks.grade import judge
from tasks.parsers import END, START, read_json, read_r2e, read_reward
from tasks.patches import diff_text
from tasks.reverse import reverse_patch
from tasks.rules import is_resolved
from tasks.swebench import read_log
from tasks.witness import Witness

HERE = Path(__file__).parent / "data"
DATA = Path(os.environ.get("GREENGRAD_DATA") or Path(__file__).parents[2] / "shared" / "data")
ROWS = [json.loads(line) for line in (HERE / "rows.jsonl").read_text().split("\n") if line]
PATCH = diff_text("src/a.py", "x = 1\n", "x = 2\n")
TESTS = diff_text("tests/test_a.py", None, "def test_a():\n    assert 1\n")
PLAIN = {
    "instance_id": "o__r-1",
    "repo": "o/r",
    "base_commit": "c" * 40,
    "patch": PATCH,
    "test_patch": TESTS,
    "problem_statement": "It is broken.",
    "FAIL_TO_PASS": '["tests/test_a.py::test_a"]',
    "PASS_TO_PASS": [],
}
SMITH = {key: PLAIN[key] for key in ("instance_id", "problem_statement", "FAIL_TO_PASS", "PASS_TO_PASS", "patch")}
SMITH |= {"repo": "swesmith/o__r.12345678", "image_name": "jyangballin/swesmith.x86_64.o_1776_r.12345678"}
R2E = {
    "repo_name": "orange3",
    "docker_image": "namanjain12/orange3_final:abc",
    "commit_hash": "f" * 40,
    "parsed_commit_content": json.dumps({"old_commit_hash": "e" * 40}),
    "execution_result_content": json.dumps({"test_file_names": ["test_1.py"], "test_file_codes": ["def test_x(): pass\n"]}),
    "expected_output_json": json.dumps({"T.test_x": "PASSED", "T.test_y": "FAILED"}),
    "problem_statement": "Read this. [ISSUE]\nIt is broken.\n[/ISSUE]",
}
V2 = {**PLAIN, "pr_description": "d", "language": "Python", "image_name": "o/r:1", "install_config": {"test_cmd": "pytest -rA"}}
LIVE = {**PLAIN, "docker_image": "starryzhang/x", "test_cmds": ["pytest -rA"], "rebuild_cmds": ["pip install ."], "log_parser": "pytest"}
PRO = {key: value for key, value in PLAIN.items() if key not in ("FAIL_TO_PASS", "PASS_TO_PASS")}
PRO |= {"fail_to_pass": "['no json']", "pass_to_pass": "[]", "dockerhub_tag": "tag", "selected_test_files_to_run": '["a", "b"]'}
PRO |= {"run_script": "echo $1", "parser_script": "pass", "fail_to_pass": '["t | a"]', "requirements": "Do x.", "repo_language": "go"}
MULTI = {
    "org": "Org",
    "repo": "Repo",
    "number": 7,
    "base": {"label": "l", "ref": "r", "sha": "a" * 40},
    "fix_patch": PATCH,
    "test_patch": TESTS,
}
MULTI |= {"resolved_issues": [{"number": 1, "title": "T", "body": "B"}], "fixed_tests": {"a": {}}, "p2p_tests": {"b": {}}}
FAMILIES = {
    "swe_smith": (SMITH, Rule.ALL_PASS, "jyangballin/swesmith.x86_64.o_1776_r.12345678", "/testbed"),
    "r2e_gym": (R2E, Rule.SAME_STATUSES, "namanjain12/orange3_final:abc", "/testbed"),
    "swe_rebench_v2": (V2, Rule.PASSED_SET, "o/r:1", "/r"),
    "swe_rebench": (
        {**PLAIN, "install_config": {"test_cmd": "pytest -rA"}},
        Rule.OFFICIAL,
        "swerebench/sweb.eval.x86_64.o_1776_r-1:latest",
        "/testbed",
    ),
    "swe_gym": ({**PLAIN, "repo": "dask/dask"}, Rule.OFFICIAL, "xingyaoww/sweb.eval.x86_64.o_s_r-1:latest", "/testbed"),
    "swe_bench_live": (LIVE, Rule.NO_FAILURE, "starryzhang/x", "/testbed"),
    "swe_bench_pro": (PRO, Rule.ALL_PASS, "jefzda/sweap-images:tag", "/app"),
    "multi_swe_bench": (MULTI, Rule.NO_FAILURE, "mswebench/org_m_repo:pr-7", f"{multi_swe_bench.HOME}/Repo"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_of_each_family_has_its_rule_image_and_working_directory(family):
    row, rule, image, home = FAMILIES[family]
    task = row_task(row)
    assert (task.family, task.rule, task.image.name, task.image.home) == (family, rule, image, home)
    assert START in task.eval_script and END in task.eval_script and task.eval_script.startswith("#!/bin/bash\n")
    assert task.problem_statement.strip() and len(task.base_commit) in (0, 40)
    done = subprocess.run(["bash", "-n"], input=task.eval_script, text=True, capture_output=True, timeout=20)
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_graded_here_says_so_instead_of_being_graded_otherwise():
    unusable = {family for family, (row, *_) in FAMILIES.items() if row_task(row).unusable}
    assert unusable == {"swe_smith", "multi_swe_bench"}
    assert row_task({**LIVE, "log_parser": "def parse(log): ..."}).unusable
    assert row_task({**V2, "install_config": {"test_cmd": "x", "log_parser": "parse_log_ours"}}).unusable
    assert row_task({**PRO, "run_script": None}).unusable and row_task({**PLAIN, "repo": "python/mypy"}).unusable


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({**PLAIN, "eval_script": "x", "log_parser": "y", "patch": None}, "patch: missing"),
        ({**PLAIN, "FAIL_TO_PASS": "no json", "repo": "dask/dask"}, "FAIL_TO_PASS: malformed JSON"),
        (PLAIN, "eval_script: missing, and the test command of o/r is not known"),
        ({**R2E, "execution_result_content": "{}"}, "execution_result_content"),
        ({**R2E, "parsed_commit_content": "{}"}, "parsed_commit_content: old_commit_hash: missing"),
        ({**V2, "install_config": "["}, "install_config: malformed JSON"),
        ({**V2, "install_config": {}}, "test_cmd"),
        ({**LIVE, "test_cmds": []}, "test_cmds"),
        ({**PRO, "pass_to_pass": 3}, "pass_to_pass: a list of test ids is needed"),
        ({**MULTI, "base": {}}, "sha: missing"),
        ({**MULTI, "resolved_issues": None}, "resolved_issues"),
        ({**SMITH, "patch": "diff --git a/x b/x\nGIT binary patch\nliteral 0\n\n"}, "patch: a binary patch"),
        ({"responses_create_params": {"metadata": {}}}, "responses_create_params.metadata.instance_dict"),
        ({"text": "a poem"}, "of no known family"),
    ],
)
def test_a_broken_row_names_its_field(row, field):
    with pytest.raises(Broken) as error:
        row_task(row)
    assert field in str(error.value)


def test_one_broken_row_does_not_keep_the_rest_from_being_read(tmp_path):
    rows = [SMITH, {**R2E, "docker_image": None}, "{torn", {**V2, "instance_id": "another"}, MULTI]
    (tmp_path / "rows.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    suite = load_suite(tmp_path / "rows.jsonl")
    assert [task.family for task in suite.tasks] == ["swe_smith", "swe_rebench_v2", "multi_swe_bench"]
    assert {name: what.split(":")[0] for name, what in suite.broken.items()} == {
        "rows.jsonl:2": "docker_image",
        "rows.jsonl:3": "malformed JSON (Expecting property name enclosed in double quotes",
    }


def test_a_wrapped_row_is_the_row_inside():
    wrapped = {"responses_create_params": {"metadata": {"dataset_name": "x", "instance_dict": json.dumps(V2)}}}
    assert row_task(wrapped) == row_task(V2)
    with pytest.raises(Broken, match="inside"):
        row_task({"responses_create_params": {"metadata": {"instance_dict": wrapped}}})


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['_set']}-{row['instance_id']}")
def test_real_rows_of_every_swe_bench_set_are_read_as_they_are(row):
    task = row_task(row)
    assert (task.image.name, task.eval_script, task.log_parser) == (row["image"], row["eval_script"], row["log_parser"])
    assert task.rule is Rule.OFFICIAL and task.fail_to_pass and task.files and not task.unusable
    assert {"pass_and_fail", "fail_only"} >= {task.eval_type}


VERSION_5 = ("eval_script", "log_parser", "eval_type", "image")


@pytest.mark.parametrize("row", [row for row in ROWS if row["_set"].endswith(("Lite.test", "dev")) and "Multi" not in row["_set"]])
def test_a_row_of_version_4_gets_the_image_parser_and_test_command_of_version_5(row):
    four = row_task({key: value for key, value in row.items() if key not in VERSION_5})
    assert (four.image.name, four.log_parser) == (row["image"], row["log_parser"])
    assert command(four.eval_script) == command(row["eval_script"])


def command(script: str) -> list[str]:
    return script.split(f": '{START}'\n")[1].split(f"\n: '{END}'")[0].split()


@pytest.mark.long
def test_every_published_row_is_read():
    """Fails where the files are missing: `scripts/test --long` wants them in ../shared/data or $GREENGRAD_DATA."""
    counts = {path.stem: load_suite(path) for path in sorted(DATA.glob("*.parquet"))}
    assert {name: len(suite.tasks) for name, suite in counts.items()} == {
        "SWE-bench.dev": 225,
        "SWE-bench_Lite.dev": 23,
        "SWE-bench_Lite.test": 300,
        "SWE-bench_Multilingual.test": 300,
        "SWE-bench_Multimodal.dev": 102,
        "SWE-bench_Verified.test": 500,
    }
    assert not any(suite.broken for suite in counts.values())
    assert Counter(task.difficulty for task in counts["SWE-bench_Verified.test"].tasks)["<15 min fix"] == 194


@pytest.mark.parametrize(
    ("rule", "statuses", "resolved"),
    [
        (Rule.ALL_PASS, {"f": "PASSED", "p": "XFAIL", "new": "FAILED"}, True),
        (Rule.ALL_PASS, {"f": "PASSED", "p": "SKIPPED"}, False),
        (Rule.ALL_PASS, {"f": "PASSED"}, False),
        (Rule.PASSED_SET, {"f": "PASSED", "p": "PASSED", "q": "FAILED"}, True),
        (Rule.PASSED_SET, {"f": "PASSED", "p": "PASSED", "q": "PASSED"}, False),
        (Rule.PASSED_SET, {"f": "PASSED"}, False),
        (Rule.SAME_STATUSES, {"f": "PASSED", "p": "FAILED"}, True),
        (Rule.SAME_STATUSES, {"f": "PASSED", "p": "PASSED"}, False),
        (Rule.SAME_STATUSES, {"f": "PASSED", "p": "FAILED", "q": "PASSED"}, False),
        (Rule.SAME_STATUSES, {"f": "PASSED"}, False),
        (Rule.NO_FAILURE, {"f": "PASSED"}, True),
        (Rule.NO_FAILURE, {"f": "PASSED", "p": "SKIPPED"}, True),
        (Rule.NO_FAILURE, {"f": "PASSED", "p": "ERROR"}, False),
        (Rule.NO_FAILURE, {"p": "PASSED"}, False),
        (Rule.REWARD, {"reward": "PASSED"}, True),
        (Rule.REWARD, {"reward": "FAILED"}, False),
        (Rule.REWARD, {}, False),
    ],
)
def test_each_rule_decides_as_its_family_does(rule, statuses, resolved):
    assert is_resolved(rule, statuses, ("f",), ("p",), {"f": "PASSED", "p": "FAILED"}) is resolved


def test_the_official_rule_is_left_to_the_official_functions():
    with pytest.raises(ValueError, match="official functions"):
        is_resolved(Rule.OFFICIAL, {}, (), (), {})


def test_r2e_demands_the_very_same_statuses_as_its_gold_run():
    task = row_task(R2E)
    head = "\x1b[36mshort test summary info\x1b[0m ====\n"
    good = f"{head}PASSED r2e_tests/test_1.py::T::test_x\nFAILED r2e_tests/test_1.py::T::test_y - AssertionError: no\n"
    assert read_r2e(good) == {"T.test_x": "PASSED", "T.test_y": "FAILED"}
    for text, outcome in ((good, Outcome.RESOLVED), (good.replace("FAILED", "PASSED"), Outcome.UNRESOLVED), (head, Outcome.UNRESOLVED)):
        log = f"+ : '{START}'\n{text}+ : '{END}'\n"
        assert judge(task, Evaluation(log, Witness())).outcome is outcome
    assert "r2e_tests" in task.image.hide and "def test_x" in task.test_patch


def test_a_log_by_a_parser_of_ours_gives_a_report_in_the_official_form():
    task = row_task(PRO)
    assert read_json('noise\n{"tests": [{"name": "t | a", "status": "passed"}]}') == {"t | a": "PASSED"} and read_json("[1]\n{}") == {}
    reading = read_log(task, f"{START}\n" + '{"tests": [{"name": "t | a", "status": "PASSED"}]}' + f"\n{END}")
    assert reading.resolved and reading.readable
    report = reading.report[task.instance_id]
    assert report["resolved"] and report["tests_status"]["FAIL_TO_PASS"] == {"success": ["t | a"], "failure": []}
    assert not read_log(task, "no markers").readable
    assert "Do x." in task.problem_statement and task.language == "go"


@pytest.mark.parametrize(
    ("text", "statuses"), [("1", "PASSED"), ("1.0", "PASSED"), ("0.5", "FAILED"), ("0", "FAILED"), ("good", ""), ("nan", "FAILED")]
)
def test_a_reward_is_a_number_or_no_verdict(text, statuses):
    assert read_reward(f">>>>> Reward: 0\n>>>>> Reward: {text}\n") == ({"reward": statuses} if statuses else {})
    assert read_reward("nothing") == {}


@pytest.mark.parametrize(
    "change",
    [
        {"a.py": ("x = 1\ny = 2\n", "x = 1\ny = 3\n")},
        {"a.py": ("x = 1", "x = 2\n")},
        {"a.py": ("x = 1\n", "x = 2")},
        {"new.py": (None, "x = 1\n")},
        {"old.py": ("x = 1\n", None)},
        {"a.py": ("a\nb\nc\nd\n", "a\nB\nC\nd\n"), "b.py": ("1\n2\n3\n", "3\n2\n1\n")},
    ],
)
def test_a_reversed_patch_takes_back_what_the_patch_does(change, tmp_path):
    for name, (old, _) in change.items():
        if old is not None:
            (tmp_path / name).write_text(old)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    patch = "".join(diff_text(name, old, new) for name, (old, new) in change.items())
    for one in (patch, reverse_patch(patch)):
        subprocess.run(["git", "apply", "-"], input=one, text=True, cwd=tmp_path, check=True, timeout=20)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
    assert reverse_patch(reverse_patch(patch)) == patch


def test_a_reversed_rename_and_mode_are_what_git_reads(tmp_path):
    patch = (
        "diff --git a/a.py b/b.py\nold mode 100644\nnew mode 100755\nsimilarity index 50%\nrename from a.py\nrename to b.py\n"
        "index 1111111..2222222\n--- a/a.py\n+++ b/b.py\n@@ -1,2 +1,2 @@\n x\n-y\n+z\n"
    )
    (tmp_path / "a.py").write_text("x\ny\n")
    for one in (patch, reverse_patch(patch)):
        subprocess.run(["git", "apply", "-"], input=one, text=True, cwd=tmp_path, check=True, timeout=20)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.py": "x\ny\n"}
    assert not (tmp_path / "a.py").stat().st_mode & 0o100


HARBOR = """schema_version = "1.4"
[task]
name = "org/fix"
[metadata]
difficulty = "easy"
[environment]
docker_image = "x:1"
workdir = "/app"
"""


@pytest.fixture
def harbor(tmp_path) -> Path:
    folder = tmp_path / "suite" / "fix"
    (folder / "tests" / "deep").mkdir(parents=True)
    (folder / "task.toml").write_text(HARBOR + "[verifier]\ntimeout_sec = 50\n")
    (folder / "instruction.md").write_text("Fix it.")
    (folder / "tests" / "test.sh").write_text("bash /tests/deep/check.sh && echo 1 > /logs/verifier/reward.txt\n")
    (folder / "tests" / "deep" / "check.sh").write_text("true\n")
    return folder


def test_a_harbor_folder_is_a_task_whose_own_script_gives_the_reward(harbor):
    (task,) = load_suite(harbor.parent).tasks
    assert (task.instance_id, task.image.name, task.image.home, task.test_seconds) == ("fix", "x:1", "/app", 50.0)
    assert (task.rule, task.difficulty, task.problem_statement) == (Rule.REWARD, "easy", "Fix it.")
    between = "\n".join(task.eval_script.split(f": '{START}'\n")[1].split(f"\n: '{END}'")[0].split("\n"))
    done = subprocess.run(["bash", "-c", between], capture_output=True, text=True, timeout=30)
    assert read_reward(done.stdout) == {"reward": "PASSED"}, done.stderr
    (harbor / "tests" / "test.sh").write_text("echo '{\"reward\": 0.5}' > /logs/verifier/reward.json\n")
    (task,) = load_suite(harbor.parent).tasks
    between = task.eval_script.split(f": '{START}'\n")[1].split(f"\n: '{END}'")[0]
    assert read_reward(subprocess.run(["bash", "-c", between], capture_output=True, text=True, timeout=30).stdout) == {"reward": "FAILED"}


@pytest.mark.parametrize(
    ("file", "text", "what"),
    [
        ("task.toml", "[", "task.toml: malformed"),
        ("task.toml", "[environment]\n", "environment.docker_image: missing"),
        ("task.toml", HARBOR + "[verifier]\ntimeout_sec = 0\n", "verifier.timeout_sec"),
        ("instruction.md", None, "instruction.md: missing"),
        ("tests/test.sh", None, "tests/test.sh: missing"),
    ],
)
def test_a_broken_harbor_folder_names_its_file(file, text, what, harbor):
    (harbor / file).unlink()
    if text is not None:
        (harbor / file).write_text(text)
    suite = load_suite(harbor.parent)
    assert not suite.tasks and what in suite.broken["fix"]


def test_a_list_in_one_json_file_is_read_and_a_name_of_the_hub_that_cannot_be_had_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "rows.json").write_text(json.dumps([V2, "x"]))
    suite = load_suite(tmp_path / "rows.json")
    assert len(suite.tasks) == 1 and list(suite.broken) == ["rows.json:2"]
    (tmp_path / "rows.json").write_text("{}")
    with pytest.raises(ValueError, match="a list of rows is needed"):
        load_suite(tmp_path / "rows.json")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such data set of the Hugging Face hub can be had") as error:
        load_suite("nobody/nothing")
    assert "\n" not in str(error.value)
