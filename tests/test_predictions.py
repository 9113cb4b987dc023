"""Predictions as other agents leave them (SWE-agent 3ea751c, mini-SWE-agent a83fcae: save_predictions, merge_predictions,
update_preds_file) and as the official harness takes them; each graded as it is."""

import json
from pathlib import Path

import pytest

from tasks import Prediction, Suite, load_predictions, toy_suite

PATCH = "diff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-é\r\n+ü\r\n"


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return toy_suite(tmp_path_factory.mktemp("toys"))


def row(instance_id: str, patch: str | None = PATCH, model: str = "a/model") -> dict[str, str | None]:
    return {"model_name_or_path": model, "instance_id": instance_id, "model_patch": patch}


def ids(suite: Suite) -> list[str]:
    return [task.instance_id for task in suite.tasks[:2]]


def test_the_preds_json_of_mini_swe_agent(tmp_path: Path, toys: Suite) -> None:
    first, second = ids(toys)
    path = tmp_path / "preds.json"
    path.write_text(json.dumps({first: row(first), second: row(second, "")}, indent=2))
    assert load_predictions(path, toys) == (Prediction(first, "a/model", PATCH), Prediction(second, "a/model", ""))


def test_the_preds_json_that_swe_agent_merges(tmp_path: Path, toys: Suite) -> None:
    first, second = ids(toys)
    path = tmp_path / "preds.json"
    path.write_text(json.dumps({second: row(second), first: row(first, "")}, indent=4))
    assert load_predictions(path, toys) == (Prediction(second, "a/model", PATCH), Prediction(first, "a/model", ""))


def test_one_pred_file_of_swe_agent(tmp_path: Path, toys: Suite) -> None:
    first, _ = ids(toys)
    path = tmp_path / f"{first}.pred"
    path.write_text(json.dumps(row(first, None)))
    assert load_predictions(path, toys) == (Prediction(first, "a/model", ""),)


def test_the_folder_of_a_run_of_swe_agent(tmp_path: Path, toys: Suite) -> None:
    """One folder an instance, with its .pred and .traj; the merged preds.json beside them says the same and is not read twice."""
    first, second = ids(toys)
    for name in (first, second):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.pred").write_text(json.dumps(row(name)))
        (tmp_path / name / f"{name}.traj").write_text("{}")
    (tmp_path / "preds.json").write_text(json.dumps({name: row(name) for name in (first, second)}))
    found = load_predictions(tmp_path, toys)
    assert {item.instance_id for item in found} == {first, second} and len(found) == 2


def test_the_folder_of_a_run_of_mini_swe_agent(tmp_path: Path, toys: Suite) -> None:
    first, _ = ids(toys)
    (tmp_path / first).mkdir()
    (tmp_path / first / f"{first}.traj.json").write_text("{}")
    (tmp_path / "preds.json").write_text(json.dumps({first: row(first)}))
    assert load_predictions(tmp_path, toys) == (Prediction(first, "a/model", PATCH),)


@pytest.mark.parametrize("name", ["all_preds.jsonl", "predictions.jsonl"])
def test_lines_as_swe_agent_before_1_0_and_the_official_harness_have_them(tmp_path: Path, toys: Suite, name: str) -> None:
    (tmp_path / name).write_text("".join(json.dumps(row(one)) + "\n" for one in ids(toys)))
    assert load_predictions(tmp_path / name, toys) == load_predictions(tmp_path, toys)
    assert [item.instance_id for item in load_predictions(tmp_path / name, toys)] == ids(toys)


def test_the_list_of_the_official_harness_with_a_byte_order_mark(tmp_path: Path, toys: Suite) -> None:
    path = tmp_path / "preds.json"
    path.write_text(json.dumps([row(one) for one in ids(toys)]), encoding="utf-8-sig")
    assert [item.model_patch for item in load_predictions(path, toys)] == [PATCH, PATCH]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("preds.json", b'{"toy-a": {"instance_id": "toy-b", "model_patch": ""}}', "its instance_id is 'toy-b'"),
        ("preds.json", b"\xff\xfe", "not UTF-8 text"),
        ("preds.json", b"[" * 100_000, "malformed JSON"),
        ("preds.json", b'{"toy-a": "diff"}', "an object is needed, found str"),
        ("preds.jsonl", b'{"instance_id": "toy-a", "model_patch": "\\ud800"}', "half a surrogate pair"),
        ("x.pred", b'{"instance_id": "toy-a"}', "model_patch must be text or null"),
        ("x.pred", b"", "malformed JSON"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path: Path, toys: Suite, name: str, data: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=told) as caught:
        load_predictions(tmp_path / name, toys)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_predictions_says_what_was_looked_for(tmp_path: Path, toys: Suite) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither \*\.pred nor preds\.json"):
        load_predictions(tmp_path, toys)
