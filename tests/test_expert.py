import io
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.action import parse
from pipeline.edit import Edited, replace_once
from pipeline.expert import gold_steps, make_expert, read_scripts
from pipeline.hunks import changes_of, edits_of
from pipeline.prompt import ByteTemplate, Chat
from pipeline.tools import Shown, run_tool
from pipeline.types import Completion
from sandbox import FakeSandbox, Image
from tasks import Task
from tasks.patches import diff_text

CHAT = Chat(ByteTemplate())
MODULE = """import os


class Reader:
    def read(self):
        x = 1
        return x

    def close(self):
        x = 1
        return None
"""
LINES = st.lists(st.sampled_from(["a\n", "b\n", "    a\n", "\n", "-- c\n", "++ d\n", "é\n"]), max_size=12).map("".join)


def make_task(tmp_path, gold_patch, files):
    path = tmp_path / "tree.tar"
    with tarfile.open(path, "w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return Task("t", "r", "1", "0" * 40, "It fails.", Image("none", path), gold_patch, "", "", "parse_log_pytest", (), ())


@given(old=LINES, new=LINES, last=st.sampled_from(["", "no newline"]))
def test_the_edits_of_a_diff_give_its_result(old, new, last):
    old, new = f"first\n{old}{last}", f"first\n{new}{last}"
    edits = edits_of(changes_of(diff_text("m.py", old, new)), {"m.py": old}.get)
    text = old
    for edit in edits:
        done = replace_once(text, edit.old, edit.new)
        assert isinstance(done, Edited)
        text = done.text
    assert text == new


def test_an_edit_is_as_short_as_it_can_be():
    new = MODULE.replace("        return x", "        return x + 1")
    assert [(edit.old, edit.new) for edit in edits_of(changes_of(diff_text("m.py", MODULE, new)), {"m.py": MODULE}.get)] == [
        ("        return x", "        return x + 1")
    ]
    twice = MODULE.replace("        x = 1\n        return N", "        x = 2\n        return N")
    assert [edit.old for edit in edits_of(changes_of(diff_text("m.py", MODULE, twice)), {"m.py": MODULE}.get)] == [
        "    def close(self):\n        x = 1"
    ]


def test_patches_that_do_more_than_change_lines_are_left_to_git():
    assert changes_of(diff_text("new.py", None, "x\n")) is None
    assert changes_of(diff_text("gone.py", "x\n", None)) is None
    assert changes_of("diff --git a/x b/x\nold mode 100644\nnew mode 100755\n") is None
    assert edits_of(changes_of(diff_text("m.py", "a\n", "b\n")), {"m.py": "z\n"}.get) is None


def test_the_expert_views_the_function_edits_checks_and_submits(tmp_path):
    new = MODULE.replace("        return x", "        return x + 1")
    task = make_task(tmp_path, diff_text("pkg/m.py", MODULE, new), {"pkg/m.py": MODULE, "tests/test_m.py": ""})
    calls = [call for _, call in gold_steps(task)]
    assert [call.name for call in calls] == ["view", "edit", "bash", "submit"]
    assert calls[0].arguments == {"path": "pkg/m.py", "name": "Reader.read"}
    assert "tests/test_m.py" in calls[2].arguments["command"]


async def test_the_experts_actions_make_the_gold_change_through_the_tools(tmp_path):
    new = MODULE.replace("        x = 1\n        return N", "        x = 2\n        return N").replace(
        "import os\n", "import os\nimport re\n"
    )
    task = make_task(tmp_path, diff_text("m.py", MODULE, new), {"m.py": MODULE})
    sandbox = FakeSandbox(files={"/testbed/m.py": MODULE.encode()})
    for _, call in gold_steps(task):
        observation = await run_tool(sandbox, call, Shown(1500))
        assert "error" not in observation
    assert sandbox.files["/testbed/m.py"].decode() == new


@pytest.mark.parametrize("tree", [True, False])
def test_a_patch_that_edits_cannot_make_is_applied_whole(tmp_path, tree):
    task = make_task(tmp_path, diff_text("new.py", None, "x\n") if tree else diff_text("m.py", "a\n", "b\n"), {"m.py": "a\n"})
    if not tree:
        task = Task(**{**{name: getattr(task, name) for name in Task.__slots__}, "image": Image("official")})
    assert [call.name for _, call in gold_steps(task)] == ["bash", "submit"]
    assert "git apply /tmp/gold.patch" in gold_steps(task)[0][1].arguments["command"]


async def test_a_script_says_its_calls_in_order_then_submits(tmp_path):
    task = make_task(tmp_path, diff_text("m.py", "a\n", "b\n"), {"m.py": "a\n"})
    (tmp_path / "s.json").write_text(json.dumps({"*": [{"name": "bash", "arguments": {"command": "git apply {gold_patch}"}}]}))
    policy = make_expert(f"script:{tmp_path / 's.json'}", CHAT)(task)
    prompt, said = CHAT.start_prompt(task), []
    for _ in range(2):
        completion = await policy.sample(prompt, 5000, 0)
        assert isinstance(completion, Completion) and completion.logprobs == (0.0,) * len(completion.ids)
        said.append(parse(completion.text))
        prompt = CHAT.extend(prompt, completion, "[exit code 0]")
    assert (
        said[0].arguments["command"].endswith("git apply /tmp/gold.patch") and "base64 -d > /tmp/gold.patch" in said[0].arguments["command"]
    )
    assert said[1].name == "submit"


async def test_noop_submits_at_once(tmp_path):
    task = make_task(tmp_path, "", {})
    completion = await make_expert("noop", CHAT)(task).sample(CHAT.start_prompt(task), 100, 0)
    assert parse(completion.text).name == "submit"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ('{"a": [{"name": "rm"}]}', "a: Unknown tool 'rm'"),
        ('{"a": ["ls"]}', "a: Unknown tool None"),
    ],
)
def test_a_script_file_that_cannot_be_read_says_why(tmp_path, text, says):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_scripts(tmp_path / "s.json")


def test_an_unknown_policy_is_named():
    with pytest.raises(ValueError, match="gold, noop or script:FILE"):
        make_expert("golden", CHAT)
