"""`greengrad export`: what becomes of episodes in the formats of other tools, whole folders, mistakes of a user."""

import json
import sqlite3
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.action import prose, render
from pipeline.config import Config
from pipeline.config_io import dump_config, load_config, override
from pipeline.export import export_run
from pipeline.export_account import dump, metadata, tell, tool_definitions
from pipeline.export_atif import atif_trajectory
from pipeline.export_openai import openai_row
from pipeline.export_sweagent import sweagent_traj
from pipeline.journal import Journal
from pipeline.prompt import ByteTemplate, Chat, load_chat
from pipeline.types import Completion, Episode, Stop, ToolCall, Turn
from tasks import Outcome, Suite, Verdict, file_name, load_predictions, new_folder, toy_suite

CHAT = Chat(ByteTemplate())
PATCH = "diff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-é\r\n+ü\r\n"
TEXTS = [f"I look.\n{render(ToolCall('bash', {'command': 'ls'}))}\nThen more.", "no block", render(ToolCall("submit", {}))]


def episode(name: str = "e", instance_id: str = "task", chat: Chat = CHAT, stop: Stop = Stop.SUBMITTED) -> Episode:
    """bash, a malformed answer, submit; the second observation holds what JSON readers trip over."""
    prompt = chat.template.start(chat.system, "fix <|im_end|> this\nplease")
    turns = []
    for text, call, seen in zip(
        TEXTS, [ToolCall("bash", {"command": "ls"}), None, ToolCall("submit", {})], ["a", "\u2028\x85\ud800\0", "ok"], strict=True
    ):
        ids = tuple(chat.write(text))
        turns.append(Turn(tuple(prompt), Completion(ids, tuple(-0.1 for _ in ids), text, 3, True), call, seen, 1.0, 2.0))
        prompt = chat.extend(prompt, turns[-1].completion, "seen")
    return Episode(name, "g", instance_id, tuple(turns), stop, PATCH, Verdict(instance_id, Outcome.RESOLVED))


def make_run(run: Path, *episodes: Episode) -> Path:
    with Journal(run) as journal:
        for step, one in enumerate(episodes):
            journal.record_episode(one, step)
    dump_config(load_config(None, [*override("tasks.suite", "x"), *override("rollout.policy", "gold")], Config), run / "config.yaml")
    return run


def account(one: Episode | None = None, real_ids: bool = False):
    return tell(one or episode(), 4, "a/model", CHAT, real_ids)


# --- one episode -----------------------------------------------------------------------------------------------


def test_what_was_said_to_the_model_comes_back_from_the_ids() -> None:
    told = account()
    assert (told.system, told.statement) == (CHAT.system, "fix <|im_end|> this\nplease")


def test_what_was_said_to_a_real_model_comes_back_from_its_ids(smollm2: Path) -> None:
    chat = load_chat(smollm2)
    told = tell(episode(chat=chat), 0, "smollm2", chat, True)
    assert (told.system, told.statement) == (chat.system, "fix <|im_end|> this\nplease")


def test_an_episode_of_another_chat_is_refused() -> None:
    with pytest.raises(ValueError, match="does not begin as those of this configuration"):
        tell(episode(), 0, "m", Chat(ByteTemplate(), "tool_json"), False)


def test_openai_messages_call_tools_and_a_malformed_answer_stays_text() -> None:
    row = openai_row(account())
    roles = [message["role"] for message in row["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "tool"]
    bash, malformed = row["messages"][2], row["messages"][4]
    assert bash["content"] == "I look.\nThen more."
    assert json.loads(bash["tool_calls"][0]["function"]["arguments"]) == {"command": "ls"}
    assert bash["tool_calls"][0]["id"] == row["messages"][3]["tool_call_id"]
    assert malformed == {"role": "assistant", "content": "no block"}
    assert {tool["function"]["name"] for tool in row["tools"]} == {"bash", "view", "edit", "submit"}


def test_an_episode_that_was_not_graded_has_reward_null() -> None:
    ungraded = replace(episode(), verdict=None)
    infra = replace(episode(), stop=Stop.INFRA, verdict=Verdict("task", Outcome.INFRA, "the daemon died"))
    assert [metadata(account(one))["reward"] for one in (ungraded, infra, episode())] == [None, None, 1.0]
    assert metadata(account(infra))["verdict"] == "infra" and metadata(account())["step"] == 4


def test_atif_keeps_a_models_ids_and_log_probs_and_those_of_a_script_are_none() -> None:
    one = episode()
    steps = atif_trajectory(account(one, real_ids=True))["steps"]
    assert [step["step_id"] for step in steps] == [1, 2, 3, 4, 5]
    assert steps[2]["metrics"]["prompt_token_ids"] == one.turns[0].prompt
    assert steps[2]["metrics"]["completion_token_ids"] == one.turns[0].completion.ids
    assert steps[2]["metrics"]["extra"] == {"weights": 3} and steps[2]["extra"]["text"] == TEXTS[0]
    assert set(atif_trajectory(account(one))["steps"][2]["metrics"]) == {"prompt_tokens", "completion_tokens"}


def test_atif_joins_an_observation_to_its_call_and_a_malformed_answer_has_none() -> None:
    _, _, bash, malformed, submit = atif_trajectory(account())["steps"]
    assert bash["observation"]["results"][0]["source_call_id"] == bash["tool_calls"][0]["tool_call_id"]
    assert "tool_calls" not in malformed and "source_call_id" not in malformed["observation"]["results"][0]
    assert submit["tool_calls"][0] == {"tool_call_id": "call_3", "function_name": "submit", "arguments": {}}


def test_a_traj_says_how_the_episode_ended_in_the_words_of_swe_agent() -> None:
    ends = {stop: sweagent_traj(account(episode(stop=stop)))["info"]["exit_status"] for stop in Stop}
    assert ends[Stop.SUBMITTED] == "submitted" and ends[Stop.CONTEXT_FULL] == "submitted (exit_context)"
    nothing = replace(episode(stop=Stop.MAX_TURNS), patch="")
    assert sweagent_traj(account(nothing))["info"]["exit_status"] == "exit_cost"
    assert len(set(ends.values())) == len(Stop) - 1, "RESOURCE and INFRA are both its environment"


def test_a_traj_holds_every_turn_twice_as_step_and_as_history() -> None:
    traj = sweagent_traj(account())
    assert [step["action"] for step in traj["trajectory"]] == ["ls", "", "submit"]
    assert [step["response"] for step in traj["trajectory"]] == TEXTS
    assert [item["role"] for item in traj["history"]] == ["system", "user", *["assistant", "user"] * 3]
    assert traj["info"]["submission"] == PATCH and traj["info"]["model_stats"]["api_calls"] == 3


def test_every_tool_has_a_definition() -> None:
    edit = next(one["function"] for one in tool_definitions() if one["function"]["name"] == "edit")
    assert edit["parameters"]["required"] == ["path", "old", "new"]


@given(st.text(alphabet="`~ab\n", max_size=40), st.text(alphabet="`<>=ab\n ", min_size=1, max_size=40))
def test_prose_and_action_are_the_whole_answer(said: str, command: str) -> None:
    call = ToolCall("bash", {"command": command})
    assert prose(f"thought\n{render(call)}") == "thought"
    assert prose(f"thought {render(call, 'tool_json')}", "tool_json") == "thought"
    assert "```" in said or prose(said) == said.strip()


# --- a run -----------------------------------------------------------------------------------------------------


def test_the_lines_of_a_run_are_one_an_episode_and_plain_ascii(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", episode("e0"), replace(episode("e1"), turns=()), episode("e2"))
    found = export_run(run, "openai", tmp_path / "out")
    assert (found.written, found.empty) == (2, 1)
    data = (tmp_path / "out" / "episodes.jsonl").read_bytes()
    rows = [json.loads(line) for line in data.decode("ascii").splitlines()]
    assert [(row["metadata"]["episode_id"], row["metadata"]["step"]) for row in rows] == [("e0", 0), ("e2", 2)]
    assert rows[0]["metadata"]["model"] == "gold" and rows[0]["messages"][5]["content"] == "\u2028\x85\ufffd\0"


def test_the_folder_for_swe_agent_grades_here_as_it_is(tmp_path: Path) -> None:
    suite = Suite(tmp_path, toy_suite(tmp_path / "toys").tasks)
    first, second, _ = (task.instance_id for task in suite.tasks)
    run = make_run(tmp_path / "run", episode("e0", first), episode("e1", second))
    export_run(run, "sweagent", tmp_path / "out")
    assert {one.instance_id for one in load_predictions(tmp_path / "out", suite)} == {first, second}
    assert {one.model_patch for one in load_predictions(tmp_path / "out" / "preds.json", suite)} == {PATCH}
    assert json.loads((tmp_path / "out" / first / f"{first}.traj").read_text())["info"]["submission"] == PATCH


def test_several_attempts_at_an_instance_have_a_folder_each(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", episode("e0", "a"), episode("e1", "a"), episode("e2", "b"))
    export_run(run, "sweagent", tmp_path / "out")
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.traj"))
    assert found == ["attempt_00/a/a.traj", "attempt_00/b/b.traj", "attempt_01/a/a.traj"]
    assert list(json.loads((tmp_path / "out" / "attempt_01" / "preds.json").read_text())) == ["a"]


@pytest.mark.parametrize("form", ["openai", "atif", "sweagent"])
def test_an_id_with_slashes_stays_in_the_folder(tmp_path: Path, form: str) -> None:
    run = make_run(tmp_path / "run", episode("../../up", "/etc/x"), episode("..", ".."))
    export_run(run, form, tmp_path / "in" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "run"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["out"]


@pytest.mark.parametrize("body", [b"torn", zlib.compress(b'{"format": 99}'), zlib.compress(b"[]"), zlib.compress(b'{"format": 1}')])
def test_an_episode_that_cannot_be_read_is_named_with_its_file(tmp_path: Path, body: bytes) -> None:
    run = make_run(tmp_path / "run", episode("e0"), episode("e1"))
    with sqlite3.connect(run / "journal.sqlite") as db:
        db.execute("UPDATE episodes SET body = ? WHERE episode_id = 'e1'", (body,))
    with pytest.raises(ValueError, match=r"journal\.sqlite: episode e1 cannot be read"):
        export_run(run, "openai", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_of_a_version_with_other_keys_can_be_exported(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", episode())
    with (run / "config.yaml").open("a") as file:
        file.write("a_section_of_yesterday:\n  kind: gone\n")
    assert export_run(run, "openai", tmp_path / "out").written == 1


def test_nothing_is_left_where_an_export_fails(tmp_path: Path) -> None:
    other = replace(episode("e1"), turns=(replace(episode().turns[0], prompt=(1, 2)),))
    run = make_run(tmp_path / "run", episode("e0"), other)
    with pytest.raises(ValueError, match="e1: its prompt does not begin"):
        export_run(run, "atif", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# --- folders and names -----------------------------------------------------------------------------------------


def test_a_folder_in_use_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as draft:  # an empty one may be there
        (draft / "file").write_text("mine")
    with pytest.raises(ValueError, match="is there already and not empty"), new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "file").read_text() == "mine"


@given(st.text(min_size=1, max_size=20, alphabet=st.characters(codec="utf-8")), st.text(min_size=1, max_size=20, alphabet="./%2E\\ab"))
def test_a_file_name_is_no_path_and_tells_ids_apart(left: str, right: str) -> None:
    for name in (file_name(left), file_name(right)):
        assert "/" not in name and "\0" not in name and name not in ("", ".", "..")
    assert left == right or file_name(left) != file_name(right)
    assert file_name("django__django-11099.00") == "django__django-11099.00"


# --- a user's mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["no run", "no turns", "no config", "in use", "a file", "format"])
def test_a_mistake_is_told_in_one_line(tmp_path: Path, case: str) -> None:
    run, out, form = (
        make_run(tmp_path / "run", replace(episode(), turns=()) if case == "no turns" else episode()),
        tmp_path / "out",
        "openai",
    )
    told = {"no run": "no journal.sqlite", "no turns": "no episode with a turn", "no config": "no such configuration file"}.get(case, "")
    if case == "no run":
        run = tmp_path
    elif case == "no config":
        (run / "config.yaml").unlink()
    elif case == "in use":
        out, told = run, "not empty"
    elif case == "a file":
        out.write_text("")
        told = "is there already"
    elif case == "format":
        form, told = "yaml", "invalid choice"
    command = [sys.executable, "-m", "pipeline.cli", "export", str(run), "--format", form, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and told in done.stderr, done.stderr


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=30))
def test_any_text_comes_back_from_the_lines_but_for_half_a_surrogate_pair(text: str) -> None:
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    line = dump({"a": text, "b": dump({"c": text})})
    assert line.isascii() and "\n" not in line
    assert json.loads(line)["a"] == json.loads(json.loads(line)["b"])["c"] == whole
    assert text != whole or not any("\ud800" <= letter <= "\udfff" for letter in text)


# --- what other packages make of it ----------------------------------------------------------------------------


def test_the_types_of_the_openai_package_take_every_message_and_tool() -> None:
    from openai.types.chat import ChatCompletionMessageFunctionToolCallParam, ChatCompletionMessageParam, ChatCompletionToolParam
    from pydantic import TypeAdapter

    row = json.loads(json.dumps(openai_row(account())))
    said = TypeAdapter(ChatCompletionMessageParam)
    called = TypeAdapter(ChatCompletionMessageFunctionToolCallParam)
    for message in row["messages"]:
        said.validate_python(message, strict=True)
        assert [called.validate_python(call, strict=True) for call in message.get("tool_calls", [])] == message.get("tool_calls", [])
    assert TypeAdapter(list[ChatCompletionToolParam]).validate_python(row["tools"])


def test_load_dataset_reads_the_lines_with_and_without_a_reward(tmp_path: Path) -> None:
    from datasets import load_dataset

    run = make_run(tmp_path / "run", replace(episode("e0"), verdict=None), episode("e1"))
    export_run(run, "openai", tmp_path / "out")
    found = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["reward"] for row in found["metadata"]] == [None, 1.0]
    assert found[1]["messages"][2]["tool_calls"][0]["function"]["arguments"] == '{"command": "ls"}'
