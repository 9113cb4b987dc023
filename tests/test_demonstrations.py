"""What fine-tuning learns from: episodes collected with a demonstration, other people's trajectories, no episode twice."""

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.actor import check_demonstration, open_chat
from pipeline.cli import main
from pipeline.codec import decode_episode, encode_episode
from pipeline.config import Config, RftConfig, RolloutConfig, TasksConfig
from pipeline.config_io import load_config
from pipeline.convert import tiny_model
from pipeline.demonstration import HEAD, load_demonstration
from pipeline.expert import ScriptedPolicy
from pipeline.export import export_run
from pipeline.imports import Reading, import_trajectories, read_source
from pipeline.journal import Journal
from pipeline.prompt import ByteTemplate, Chat
from pipeline.rollout import Slot, run_episode
from pipeline.stages.rft import load_demonstrations, rft_samples, tell_plainly
from pipeline.types import Episode, Stop, ToolCall
from tasks import Outcome, Suite, Task, Verdict, toy_suite
from tests.test_srl import expert
from tests.toy_loop import CHAT, RIGHT, SUBMIT, WRONG, make_task, make_world

SUITE = [make_task(0), make_task(1)]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return toy_suite(tmp_path_factory.mktemp("suite") / "suite")


def record(folder: Path, *episodes: Episode) -> Path:
    with Journal(folder) as journal:
        for number, episode in enumerate(episodes):
            journal.record_episode(replace(episode, episode_id=f"{number}.{episode.episode_id}"), 0)
    return folder


# ------------------------------------------------------------------------------------------------ a demonstration


async def play(chat: Chat, task: Task) -> Episode:
    rig = replace(make_world().rig, chat=chat)
    return await run_episode(ScriptedPolicy(chat, task, [RIGHT]), task, rig, Slot("e", "g"))


async def test_an_episode_shows_a_demonstration_and_is_trained_on_without_it(tmp_path: Path) -> None:
    shown = replace(CHAT, demonstrate=load_demonstration(record(tmp_path / "demonstration", expert(0), expert(1))))
    plain, episode = await play(CHAT, SUITE[0]), await play(shown, SUITE[0])
    assert HEAD in CHAT.template.decode(episode.turns[0].prompt) and HEAD not in CHAT.template.decode(plain.turns[0].prompt)
    kept = decode_episode(encode_episode(episode))
    assert kept == episode and kept.plain_start == plain.turns[0].prompt
    (sample,), (without,) = rft_samples([tell_plainly(kept, CHAT, SUITE[0])]), rft_samples([plain])
    np.testing.assert_array_equal(sample.ids_T, without.ids_T)
    np.testing.assert_array_equal(sample.mask_T, without.mask_T)
    assert tell_plainly(plain, CHAT, SUITE[0]) == plain


def test_a_task_is_never_shown_an_episode_of_its_own_and_the_shortest_comes_first(tmp_path: Path) -> None:
    run = record(
        tmp_path,
        expert(0, (WRONG, WRONG, RIGHT, SUBMIT)),
        expert(0),
        expert(1, (WRONG, WRONG, WRONG, RIGHT, SUBMIT)),
        expert(2, ("Hm.\n" + WRONG, RIGHT, SUBMIT)),
    )
    show = load_demonstration(run)
    assert [show(make_task(number)) == show(make_task(9)) for number in range(3)] == [False, True, True]
    assert show(make_task(9)).count("```edit") == 2, "the shortest: two edits and a submission"


@pytest.mark.parametrize("what", ["empty file", "no file", "one task", "no run"])
def test_a_demonstration_that_shows_nothing_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "d"
    if what == "empty file":
        path.write_text(" \n")
    if what == "one task":
        record(path, expert(0), expert(0))
    if what == "no run":
        path.mkdir()
    with pytest.raises((ValueError, FileNotFoundError)):
        load_demonstration(path)


@pytest.mark.parametrize("command", ["rollout", "eval"])
def test_a_demonstration_is_refused_before_a_folder_is_made_and_by_evaluations_always(
    tmp_path: Path, suite: Suite, command: str, capsys: Any
) -> None:
    (tmp_path / "d.md").write_bytes(b"\xff\xfe" if command == "rollout" else b"look, then edit")
    config, out = tmp_path / "c.yaml", str(tmp_path / "out")
    config.write_text(f"tasks: {{suite: {suite.path}}}\nrollout: {{policy: gold, demonstration: {tmp_path / 'd.md'}}}\n")
    words = ["rollout", str(config), "--run", out]
    words = words if command == "rollout" else ["eval", str(suite.path), "--policy", "gold", "--config", str(config), "--out", out]
    assert main(words) == 2 and not (tmp_path / "out").exists()
    assert ("d.md: not UTF-8 text" if command == "rollout" else "is for `greengrad rollout`") in capsys.readouterr().err


def test_reinforcement_with_a_demonstration_in_the_prompt_is_refused(tmp_path: Path, suite: Suite, capsys: Any) -> None:
    (tmp_path / "d.md").write_text("look, then edit")
    (tmp_path / "c.yaml").write_text(
        f"tasks: {{suite: {suite.path}}}\nmodel: {{path: m}}\nrollout: {{demonstration: {tmp_path / 'd.md'}}}\n"
    )
    assert main(["train", str(tmp_path / "c.yaml"), "--run", str(tmp_path / "run")]) == 2
    assert "rollout.demonstration is for `greengrad rollout`" in capsys.readouterr().err and not (tmp_path / "run").exists()


def rollout_in(tmp_path: Path, suite: Suite, demonstration: Path, context: int) -> list[str]:
    """The words of a rollout whose prompts are a tiny model's tokens; nothing is sampled or started before its checks."""
    model = tiny_model(tmp_path / "model")
    (tmp_path / "c.yaml").write_text(
        f"tasks: {{suite: {suite.path}}}\nmodel: {{path: {model}, context: {context}}}\n"
        f"rollout: {{policy: gold, max_new_tokens: 100, demonstration: {demonstration}}}\n"
    )
    return ["rollout", str(tmp_path / "c.yaml"), "--run", str(tmp_path / "run")]


def test_a_demonstration_that_fits_into_no_prompt_is_refused_before_anything_is_written(
    tmp_path: Path, suite: Suite, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d.md").write_text("look, then edit\n" * 500)
    words = rollout_in(tmp_path, suite, tmp_path / "d.md", 6000)
    capsys.readouterr()
    assert main(words) == 2 and not (tmp_path / "run").exists()
    told = capsys.readouterr().err.strip()
    assert "d.md leaves room in model.context for rollout.max_new_tokens = 100 in the prompt of no task" in told and "\n" not in told


def test_a_task_is_shown_the_first_demonstration_that_fits_or_none(tmp_path: Path, suite: Suite, caplog: pytest.LogCaptureFixture) -> None:
    long = expert(0, ("Hm.\n" * 2000 + RIGHT, SUBMIT))
    run = record(tmp_path / "run", long, expert(1, (WRONG, RIGHT, SUBMIT)), expert(2, (WRONG, WRONG, RIGHT, SUBMIT)))
    show = load_demonstration(run, lambda task, text: len(text) < 1000)
    assert show(make_task(0)) == show(make_task(9)) == load_demonstration(run)(make_task(0)), "the next in turns, as long as it fits"
    assert show(make_task(1)).count("```edit") == 3, "its own never: the one after that"
    tasks = [replace(suite.tasks[0], instance_id=name, problem_statement=text) for name, text in (("a", "short"), ("b", "long " * 2000))]
    config = load_config(Path(rollout_in(tmp_path, suite, run, 6000)[1]), [], Config)
    check_demonstration(config, tasks)
    assert "in 1 of 2 tasks (b ...): they go without" in caplog.text
    chat = open_chat(config)
    shown, without = [(chat.template.decode(chat.start_prompt(task)), chat.plain_start(task)) for task in tasks]
    assert HEAD in shown[0] and shown[1]
    assert HEAD not in without[0] and without[1] == (), "there was none"


# ------------------------------------------------------------------------------------------------ what is chosen


def test_fine_tuning_reads_per_task_and_leaves_other_tasks_out(tmp_path: Path, suite: Suite) -> None:
    names = [task.instance_id for task in suite.tasks if task.split == "train"]
    texts = [(RIGHT, SUBMIT), (WRONG, RIGHT, SUBMIT), ("Well.\n" + RIGHT, SUBMIT)]
    mine = [replace(expert(0, text), instance_id=name) for name in (names[0], names[1], "another suite's") for text in texts]
    run = record(tmp_path / "run", *mine)
    config = Config(tasks=TasksConfig(suite=suite.path))
    found = list(load_demonstrations(config, RftConfig(), run))
    assert [(one.instance_id, len(one.turns)) for one in found] == [(names[0], 2), (names[0], 3), (names[1], 2), (names[1], 3)]
    assert [len(one.turns) for one in load_demonstrations(config, RftConfig(per_task=1), run)] == [2, 2]
    with pytest.raises(ValueError, match="none is of a task of"):
        list(load_demonstrations(config, RftConfig(), record(tmp_path / "others", mine[-1])))


def test_fine_tuning_holds_one_episode_at_a_time(tmp_path: Path, suite: Suite) -> None:
    """A told episode holds each turn's whole prompt: forty of a long run took gigabytes."""
    name = next(task.instance_id for task in suite.tasks if task.split == "train")
    lines = ["Hm. " * 500 + "\n" + WRONG.replace("a * b", f"a * {number}") for number in range(40)]
    episodes = [replace(expert(0, (*lines[: 9 + number % 2], line, SUBMIT)), instance_id=name) for number, line in enumerate(lines)]
    config = Config(tasks=TasksConfig(suite=suite.path))
    peaks = []
    for count in (4, 40):
        run = record(tmp_path / str(count), *episodes[:count])
        tracemalloc.start()
        assert sum(1 for _ in load_demonstrations(config, RftConfig(), run)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]


def test_an_episode_in_another_template_is_told_anew_in_the_model_s() -> None:
    other = Chat(ByteTemplate(), "tool_json")
    episode = expert(0, chat=CHAT)
    told = tell_plainly(episode, other, SUITE[0])
    assert told.turns[0].prompt == tuple(other.start_prompt(SUITE[0])) != episode.turns[0].prompt
    assert [turn.completion.text for turn in told.turns] == [turn.completion.text for turn in episode.turns]


def test_an_answer_that_was_cut_is_told_without_an_end_that_nobody_said() -> None:
    other, whole = Chat(ByteTemplate(), "tool_json"), expert(0)
    first = whole.turns[0]
    cut = replace(first, completion=replace(first.completion, ids=first.completion.ids[:-1], stopped=False))
    told = tell_plainly(replace(whole, turns=(cut, *whole.turns[1:])), other, SUITE[0])
    assert [turn.completion.ids[-1] == other.template.turn_end for turn in told.turns] == [False, True, True]
    assert told.turns[1].prompt == tell_plainly(whole, other, SUITE[0]).turns[1].prompt, "the context has the end"


def test_an_episode_that_started_in_the_middle_of_another_is_told_anew_whole() -> None:
    other, whole = Chat(ByteTemplate(), "tool_json"), expert(0)
    told = tell_plainly(replace(whole, prefix=whole.turns[:1], turns=whole.turns[1:]), other, SUITE[0])
    assert told.turns == tell_plainly(whole, other, SUITE[0]).turns[1:] and told.turns[0].prompt != whole.turns[1].prompt
    same = replace(whole, prefix=whole.turns[:1], turns=whole.turns[1:])
    assert tell_plainly(same, CHAT, SUITE[0]) == same


# ------------------------------------------------------------------------------------------------ other people's


def message(role: str, content: Any, *calls: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    given = [{"id": "1", "type": "function", "function": {"name": name, "arguments": json.dumps(values)}} for name, values in calls]
    return {"role": role, "content": content, **({"tool_calls": given} if given else {})}


START = [message("system", "You act."), message("user", "<uploaded_files>\n/workspace/toy\n</uploaded_files> add is wrong")]
EDIT = {"command": "str_replace", "path": "/workspace/toy/calc.py", "old_str": "a - b", "new_str": "a + b"}


def openhands(**more: Any) -> dict[str, Any]:
    """As SWE-Gym's rows are: tool calls, observations with a head."""
    said = [
        message(
            "assistant", "I look.", ("str_replace_editor", {"command": "view", "path": "/workspace/toy/calc.py", "view_range": [1, 9]})
        ),
        message("tool", "OBSERVATION:\ndef add(a, b):\n    return a - b"),
        message("assistant", "```python\na + b\n```\nis right", ("str_replace_editor", EDIT)),
        message("tool", "OBSERVATION:\nedited /workspace/toy/calc.py"),
        message("assistant", "", ("execute_bash", {"command": "cd /workspace/toy && pytest"})),
        message("tool", "OBSERVATION:\n1 passed"),
        message("assistant", [{"type": "text", "text": "Done."}], ("finish", {"message": "bye"})),
    ]
    return {"instance_id": "toy-0_3", "resolved": True, "messages": START + said, **more}


def swe_smith(**more: Any) -> dict[str, Any]:
    """As SWE-smith's rows are: functions as text, a submission that is asked to think again."""
    said = [
        message("assistant", "I look.\n\n<function=bash>\n<parameter=command>cat calc.py</parameter>\n</function>"),
        message("user", "OBSERVATION:\nreturn a - b"),
        message("assistant", "<function=submit>\n</function>"),
        message("user", "OBSERVATION:\nAre you sure?"),
        message("assistant", "Sorry, I forgot the function."),
        message("user", "Your last answer had no function."),
        message("assistant", "<function=submit>\n</function>"),
    ]
    return {
        "instance_id": "toy-1",
        "resolved": True,
        "messages": json.dumps(START + said),
        "patch": "p",
        "model": "m",
        "traj_id": "t",
        **more,
    }


def test_tool_calls_become_ours_and_paths_are_below_our_home(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([openhands()]))
    found = import_trajectories([str(tmp_path / "rows.json")], SUITE, tmp_path / "run", Reading())
    assert (found.episodes, found.left_out) == (1, {})
    with Journal(tmp_path / "run", readonly=True) as journal:
        (episode,) = journal.episodes()
    assert [turn.call for turn in episode.turns] == [
        ToolCall("view", {"path": "/testbed/calc.py", "lines": "1-9"}),
        ToolCall("edit", {"path": "/testbed/calc.py", "old": "a - b", "new": "a + b"}),
        ToolCall("bash", {"command": "cd /testbed && pytest"}),
        ToolCall("submit", {}),
    ]
    assert episode.turns[1].completion.text.startswith("a + b\nis right\n```edit"), "fences of a thought would be taken for actions"
    assert episode.turns[0].observation == "def add(a, b):\n    return a - b" and episode.stop is Stop.SUBMITTED
    assert episode.instance_id == "toy-0" and episode.reward == 1.0
    assert episode.verdict is not None and "by the word of rows.json:1; not graded here" in episode.verdict.reason
    (sample,) = rft_samples([tell_plainly(episode, CHAT, SUITE[0])])
    assert sample.mask_T.sum() == sum(len(turn.completion.ids) for turn in episode.turns)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".json"])
def test_functions_as_text_and_a_malformed_turn_that_stays_in_the_context(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([swe_smith()]), path)
    else:
        path.write_text(json.dumps(swe_smith()) + "\n" if suffix == ".jsonl" else json.dumps([swe_smith()]))
    import_trajectories([str(path)], SUITE, tmp_path / "run", Reading("tool_json"))
    with Journal(tmp_path / "run", readonly=True) as journal:
        (episode,) = journal.episodes()
    assert [turn.call and turn.call.name for turn in episode.turns] == ["bash", None, "submit"] and episode.patch == "p"
    assert "<tool_call>" in episode.turns[0].completion.text
    (sample,) = rft_samples([episode])
    assert sample.mask_T.sum() == sum(len(turn.completion.ids) for turn in episode.turns if turn.call)


STEPS = [
    ("ls -F\n", "calc.py"),
    ("str_replace_editor str_replace /testbed/calc.py --old_str 'a - b' --new_str 'a + b'", "edited"),
    ("str_replace_editor view /testbed/calc.py --view_range 3 -1", "..."),
    ("submit", ""),
]


def write_traj(path: Path, steps: list[tuple[str, str]], **info: Any) -> str:
    told = [{"thought": "I act.", "action": action, "observation": seen, "response": "", "state": {}} for action, seen in steps]
    path.write_text(json.dumps({"trajectory": told, "history": [], "info": {"submission": "diff", **info}}))
    return str(path)


def test_a_traj_of_swe_agent_says_nothing_of_its_grade(tmp_path: Path) -> None:
    file = write_traj(tmp_path / "toy-0.traj", STEPS)
    with pytest.raises(ValueError, match="nothing can be used: 1 of which nothing says that they are resolved"):
        import_trajectories([file], SUITE, tmp_path / "none", Reading())
    assert not (tmp_path / "none").exists(), "nothing is written where nothing can be used"
    import_trajectories([file], SUITE, tmp_path / "run", Reading(trust=True))
    with Journal(tmp_path / "run", readonly=True) as journal:
        (episode,) = journal.episodes()
    assert [turn.call and turn.call.name for turn in episode.turns] == ["bash", "edit", "bash", "submit"]
    assert episode.turns[2].call == ToolCall("bash", {"command": "tail -n +3 /testbed/calc.py"}) and episode.patch == "diff"


@pytest.mark.parametrize("form", ["sweagent", "openai"])
def test_what_we_export_comes_back_as_it_was(tmp_path: Path, form: Any) -> None:
    run = record(
        tmp_path / "run", expert(0, ("I look.\n" + WRONG, RIGHT, SUBMIT)), replace(expert(1), verdict=Verdict("toy-1", Outcome.UNRESOLVED))
    )
    (run / "config.yaml").write_text("tasks: {suite: s}\n")
    export_run(run, form, tmp_path / "out")
    files = [str(path) for path in sorted((tmp_path / "out").rglob("*")) if path.suffix in (".traj", ".jsonl") and path.stem != "preds"]
    found = import_trajectories(files, SUITE, tmp_path / "back", Reading(observation_chars=1500))
    assert (found.episodes, dict(found.left_out)) == (1, {"not resolved": 1})
    with Journal(tmp_path / "back", readonly=True) as journal:
        (back,) = journal.episodes()
    kept = expert(0, ("I look.\n" + WRONG, RIGHT, SUBMIT))
    assert [(turn.call, turn.observation, turn.completion.text) for turn in back.turns] == [
        (turn.call, turn.observation, turn.completion.text) for turn in kept.turns
    ]


@pytest.mark.parametrize("action_format", ["fenced", "tool_json"])
def test_what_was_imported_can_be_exported(tmp_path: Path, action_format: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([openhands()]))
    run = tmp_path / "run"
    import_trajectories([str(tmp_path / "rows.json")], SUITE, run, Reading(action_format))
    assert main(["export", str(run), "--format", "openai", "--out", str(tmp_path / "out")]) == 0
    (line,) = (tmp_path / "out" / "episodes.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["metadata"]["model"] == "imported" and "add is wrong" in row["messages"][1]["content"]
    assert [one["function"]["name"] for message in row["messages"] for one in message.get("tool_calls", ())][-1] == "submit"
    for text in ("{", "{}"):
        (run / "import.json").write_text(text)
        capsys.readouterr()
        assert main(["export", str(run), "--format", "openai", "--out", str(tmp_path / "again")]) == 2
        assert "import.json" in capsys.readouterr().err and not (tmp_path / "again").exists()


BAD: list[tuple[Callable[[], dict[str, Any]], str]] = [
    (lambda: openhands(resolved=False), "1 not resolved"),
    (lambda: openhands(instance_id="elsewhere-1"), "1 of tasks that are not in the suite"),
    (lambda: openhands(messages=START), "1 without a turn that holds an action"),
    (lambda: openhands(messages=[*START, message("assistant", "", ("browse", {"url": "x"}))]), r"no tool here does \(browse\)"),
    (
        lambda: openhands(messages=[*START, message("assistant", "", ("str_replace_editor", {"command": "undo_edit", "path": "x"}))]),
        "undo_edit of the editor",
    ),
    (
        lambda: openhands(messages=[*START, message("assistant", "", ("bash", {"command": "a"}), ("bash", {"command": "b"}))]),
        "several actions in a turn",
    ),
    (
        lambda: openhands(messages=[*START, message("assistant", "", ("execute_bash", {"command": "C-c", "is_input": "true"}))]),
        "input to a program that runs",
    ),
    (lambda: openhands(messages=[*START, message("assistant", "I am done.")]), "1 without a turn that holds an action"),
]


@pytest.mark.parametrize(("row", "told"), BAD)
def test_a_trajectory_that_cannot_be_used_is_counted_and_an_expert_with_unknown_tools_is_an_error(
    tmp_path: Path, row: Any, told: str
) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([row()]))
    with pytest.raises(ValueError, match=told):
        import_trajectories([str(tmp_path / "rows.json")], SUITE, tmp_path / "run", Reading())
    (tmp_path / "more.json").write_text(json.dumps([row(), openhands()]))
    found = import_trajectories([str(tmp_path / "more.json")], SUITE, tmp_path / "run", Reading())
    assert found.episodes == 1 and sum(found.left_out.values()) == 1


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', '[{"a": 1}]'])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".traj", ".txt"])
def test_a_file_that_holds_no_trajectories_is_one_line_and_exit_code_2(
    tmp_path: Path, suite: Suite, text: str, suffix: str, capsys: Any
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_text(text)
    assert main(["import", str(path), "--tasks", str(suite.path), "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err.strip()
    assert path.name in told and "\n" not in told and not (tmp_path / "run").exists()


def test_the_command_tells_what_it_left_out(tmp_path: Path, suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    name = suite.tasks[0].instance_id
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in (openhands(instance_id=name), swe_smith(), openhands(resolved=False)))
    )
    words = ["import", str(tmp_path / "rows.jsonl"), "--tasks", str(suite.path), "--out", str(tmp_path / "run")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "run: 1 episodes" in told and "left out: 1 not resolved" in told and "left out: 1 of tasks that are not in the suite" in told
    assert main(words) == 2 and "holds a run already" in capsys.readouterr().err
    (tmp_path / "c.yaml").write_text(f"tasks: {{suite: {suite.path}}}\nrollout: {{policy: gold}}\n")
    assert main(["rollout", str(tmp_path / "c.yaml"), "--run", str(tmp_path / "run")]) == 2, "it would be one run with the imported"
    assert "no configuration made" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["False", "false", 0.5, 2, -1, 0])
def test_what_a_column_says_is_not_resolved_is_not(tmp_path: Path, value: Any) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([openhands(resolved=value), openhands()]))
    found = import_trajectories([str(tmp_path / "rows.json")], SUITE, tmp_path / "run", Reading(trust=True))
    assert (found.episodes, dict(found.left_out)) == (1, {"not resolved": 1})


@pytest.mark.parametrize("value", ["no", "0", [], None, float("nan")])
def test_what_a_column_does_not_say_nobody_says(tmp_path: Path, value: Any) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([openhands(resolved=value), openhands(resolved="True")]))
    found = import_trajectories([str(tmp_path / "rows.json")], SUITE, tmp_path / "run", Reading())
    assert found.episodes == 1 and sum(found.left_out.values()) == 1


def import_one(folder: Path, *said: dict[str, Any], start: list[dict[str, Any]] = START) -> list[ToolCall | None]:
    (folder / "rows.json").write_text(json.dumps([openhands(messages=[*start, *said])]))
    import_trajectories([str(folder / "rows.json")], SUITE, folder / "run", Reading())
    with Journal(folder / "run", readonly=True) as journal:
        (episode,) = journal.episodes()
    return [turn.call for turn in episode.turns]


LOOK, FINISH = message("assistant", "", ("bash", {"command": "ls"})), message("assistant", "", ("finish", {}))


def test_only_paths_below_their_home_are_moved(tmp_path: Path) -> None:
    start = [message("user", "<uploaded_files>\n/app/\n</uploaded_files>")]
    command = "cd /app && cat /app/a.py /application/b.py /srv/app/c.py\n/app/run"
    moved, _ = import_one(tmp_path, message("assistant", "", ("bash", {"command": command})), FINISH, start=start)
    assert moved == ToolCall("bash", {"command": "cd /testbed && cat /testbed/a.py /application/b.py /srv/app/c.py\n/testbed/run"})


def test_a_fence_in_a_trajectory_with_tool_calls_is_no_action(tmp_path: Path) -> None:
    said = message("assistant", "I could:\n```\nrm -rf build\n```"), message("user", "Call a tool.")
    assert import_one(tmp_path, LOOK, *said, FINISH) == [ToolCall("bash", {"command": "ls"}), None, ToolCall("submit", {})]


def test_a_view_of_a_folder_is_a_command_because_ours_shows_files(tmp_path: Path) -> None:
    look = message("assistant", "", ("str_replace_editor", {"command": "view", "path": "/workspace/toy"}))
    seen = "OBSERVATION:\nHere's the files and directories up to 2 levels deep in /workspace/toy, excluding hidden items:\n/workspace/toy/a"
    (call, _) = import_one(tmp_path, look, message("tool", seen), FINISH)
    assert call == ToolCall("bash", {"command": "find /testbed -maxdepth 2 -not -path '*/.*'"})


def test_words_after_a_submission_do_not_undo_it(tmp_path: Path) -> None:
    assert import_one(tmp_path, LOOK, FINISH, message("assistant", "It is fixed."))[-1] == ToolCall("submit", {})


def test_half_a_surrogate_pair_is_no_text_that_a_tokenizer_refuses(tmp_path: Path) -> None:
    (call,) = import_one(tmp_path, message("assistant", "\ud800", ("bash", {"command": "echo \udc00"})))
    assert call == ToolCall("bash", {"command": "echo ?"})


@pytest.mark.parametrize("calls", [7, True, "bash", {"function": "bash"}, [{"function": {"name": 5}}], [["bash"]]])
def test_tool_calls_that_are_none_are_told_with_their_row(tmp_path: Path, calls: Any) -> None:
    bad = {"role": "assistant", "content": "", "tool_calls": calls}
    (tmp_path / "rows.json").write_text(json.dumps([openhands(messages=[*START, bad])]))
    with pytest.raises(ValueError, match="a tool call without a function's name"):
        import_trajectories([str(tmp_path / "rows.json")], SUITE, tmp_path / "run", Reading())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", ["{", "[1]", "[" * 100_000])
def test_arguments_that_cannot_be_read_cost_their_trajectory_and_not_the_others(tmp_path: Path, arguments: str) -> None:
    bad = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "bash", "arguments": arguments}}]}
    (tmp_path / "rows.json").write_text(json.dumps([openhands(messages=[*START, bad]), openhands()]))
    found = import_trajectories([str(tmp_path / "rows.json")], SUITE, tmp_path / "run", Reading())
    (reason,) = found.left_out
    assert found.episodes == 1 and "bash, whose arguments are" in reason


@pytest.mark.parametrize("steps", ["bash {a", "str_replace_editor", "str_replace_editor view 'a"])
def test_a_command_line_that_cannot_be_read_costs_its_trajectory_alone(tmp_path: Path, steps: str) -> None:
    (tmp_path / "0").mkdir()
    files = [write_traj(tmp_path / "0" / "toy-0.traj", [(steps, "")]), write_traj(tmp_path / "toy-0.traj", STEPS)]
    found = import_trajectories(files, SUITE, tmp_path / "run", Reading(trust=True))
    assert found.episodes == 1 and sum(found.left_out.values()) == 1


ODD: list[dict[str, Any]] = [
    *({"messages": value} for value in ("{", None, 3, {"a": 1}, ["a"])),
    *({"messages": [{"role": "assistant", "tool_calls": calls}]} for calls in ("abc", [1], [{"x": 1}], [{"function": {"name": 1}}])),
]


@pytest.mark.parametrize("row", ODD)
def test_a_row_of_another_shape_is_one_line_that_names_it(tmp_path: Path, row: Any, suite: Suite, capsys: Any) -> None:
    (tmp_path / "x.json").write_text(json.dumps([openhands(**row)]))
    assert main(["import", str(tmp_path / "x.json"), "--tasks", str(suite.path), "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err.strip()
    assert "x.json:1" in told and "\n" not in told


def test_metadata_and_names_may_be_of_any_type(tmp_path: Path) -> None:
    row = {key: value for key, value in openhands(metadata=json.dumps({"reward": 1.0}), patch=None).items() if key != "resolved"}
    (tmp_path / "rows.json").write_text(json.dumps([row, openhands(instance_id=3), openhands(metadata=[1])]))
    found = import_trajectories([str(tmp_path / "rows.json")], SUITE, tmp_path / "run", Reading())
    assert (found.episodes, dict(found.left_out)) == (2, {"of tasks that are not in the suite": 1})


def test_an_import_is_there_whole_and_touches_no_folder_of_others(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([openhands()]))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("x")
    with pytest.raises(ValueError, match="or something else; choose a new folder"):
        import_trajectories([str(tmp_path / "rows.json")], SUITE, tmp_path / "mine", Reading())
    with Journal(tmp_path / "run.partial") as journal:
        journal.issue("of a killed import", "g", "t", 0)
    import_trajectories([str(tmp_path / "rows.json")], SUITE, tmp_path / "run", Reading())
    with Journal(tmp_path / "run", readonly=True) as journal:
        assert list(journal.ledger().issued) == ["toy-0.00000"]
    assert not (tmp_path / "run.partial").exists()


def test_an_observation_is_clipped_as_ours_are(tmp_path: Path) -> None:
    write_traj(tmp_path / "toy-0.traj", [("ls", "x" * 5000), ("submit", "")])
    (trajectory,) = read_source(str(tmp_path / "toy-0.traj"))
    assert len(trajectory.turns[0].observation) == 5000
    import_trajectories([str(tmp_path / "toy-0.traj")], SUITE, tmp_path / "run", Reading(trust=True, observation_chars=200))
    with Journal(tmp_path / "run", readonly=True) as journal:
        (episode,) = journal.episodes()
    assert len(episode.turns[0].observation) < 260 and "left out" in episode.turns[0].observation


def test_rollout_reads_the_demonstration(tmp_path: Path) -> None:
    (tmp_path / "d.md").write_text("look, then edit")
    config = Config(tasks=TasksConfig(suite=tmp_path), rollout=RolloutConfig(demonstration=tmp_path / "d.md"))
    assert "look, then edit" in ByteTemplate().decode(open_chat(config).start_prompt(SUITE[0]))
