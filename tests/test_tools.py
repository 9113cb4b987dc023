import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.edit import Edited, EditError, replace_once
from pipeline.outline import Unparsed, find, outline
from pipeline.tools import Shown, clip, run_tool
from pipeline.types import ToolCall
from sandbox import WORKDIR, ExecResult, FakeSandbox, ResourceExhausted, SandboxError

SHOWN = Shown(chars=1500)
MODULE = b"""import os


@decorated
def first(x):
    return x


class Reader:
    def read(self):
        return 1

    def close(self):
        return 2


class Writer:
    def close(self):
        return 3
"""


async def use(sandbox, tool, /, shown=SHOWN, **arguments):
    return await run_tool(sandbox, ToolCall(tool, arguments), shown)


def hold(files):
    return FakeSandbox(files={f"{WORKDIR}/{name}": data for name, data in files.items()})


def answer(reply):
    return FakeSandbox({"": reply})


@pytest.fixture
def sandbox():
    return hold({"m.py": MODULE, "crlf.txt": b"one\r\ntwo\r\n", "latin.txt": b"caf\xe9 = 1\n", "empty.py": b""})


async def test_bash_shows_output_and_exit_code():
    sandbox = answer(ExecResult(b"hello\n", 3, 0.1))
    assert await use(sandbox, "bash", command="echo hello") == "hello\n[exit code 3]"
    assert sandbox.commands == ["echo hello"]


async def test_a_long_output_keeps_head_and_tail():
    sandbox = answer(ExecResult(b"a" * 5000 + b"z" * 5000, 0, 0.1))
    text = await use(sandbox, "bash", command="x")
    assert text.startswith("a" * 750) and "8500 characters left out" in text and text.endswith("z" * 750 + "\n[exit code 0]")


async def test_a_timeout_and_lack_of_memory_are_told():
    assert "over the time limit" in await use(answer(ExecResult(b"", 124, 20.0, timed_out=True)), "bash", command="x")
    assert "out of memory" in await use(answer(ExecResult(b"", 137, 1.0, out_of_memory=True)), "bash", command="x")


@pytest.mark.parametrize("failure", [SandboxError("daemon"), ResourceExhausted("disk")])
async def test_failures_of_the_machine_are_no_observations(failure):
    with pytest.raises(type(failure)):
        await use(answer(failure), "bash", command="x")


async def test_a_small_file_is_shown_whole(sandbox):
    assert await use(sandbox, "view", path="m.py") == f"m.py lines 1-19 of 19:\n{MODULE.decode().rstrip()}"
    assert await use(sandbox, "view", path=f"{WORKDIR}/./m.py") == f"{WORKDIR}/./m.py lines 1-19 of 19:\n{MODULE.decode().rstrip()}"
    assert await use(sandbox, "view", path="empty.py") == "empty.py is empty"


async def test_a_large_file_is_shown_with_its_outline():
    source = b"def f():\n    return 1\n" + b"x = 1\n" * 1000 + b"def g():\n    pass\n"
    text = await use(hold({"big.py": source}), "view", path="big.py")
    assert "not shown]" in text and "It defines: f (1-2), g (1003-1004)" in text and len(text) < 1700


async def test_one_function_is_shown_with_its_decorator(sandbox):
    assert await use(sandbox, "view", path="m.py", name="first") == "m.py lines 4-6 of 19:\n@decorated\ndef first(x):\n    return x"
    assert await use(sandbox, "view", path="m.py", name="Writer.close") == "m.py lines 18-19 of 19:\n    def close(self):\n        return 3"


async def test_a_name_that_is_ambiguous_or_unknown_is_answered_with_choices(sandbox):
    assert "Reader.close (13-14), Writer.close (18-19)" in await use(sandbox, "view", path="m.py", name="close")
    assert "did you mean first?" in await use(sandbox, "view", path="m.py", name="frist")
    assert "no such file" in await use(sandbox, "view", path="n.py")


async def test_lines_are_shown_and_checked(sandbox):
    assert await use(sandbox, "view", path="m.py", lines="1-1") == "m.py lines 1-1 of 19:\nimport os"
    assert (await use(sandbox, "view", path="m.py", lines="19")).endswith("        return 3")
    assert "has lines 1-19" in await use(sandbox, "view", path="m.py", lines="40-50")
    assert "must look like" in await use(sandbox, "view", path="m.py", lines="x-y")
    assert "must look like" in await use(sandbox, "view", path="m.py", lines="1-" + "9" * 5000)


async def test_a_file_that_does_not_parse_is_still_shown_by_lines():
    sandbox = hold({"m.py": b"def f(:\n  x\n"})
    assert "cannot be parsed (line 1" in await use(sandbox, "view", path="m.py", name="f")
    assert "def f(:" in await use(sandbox, "view", path="m.py", lines="1-2")


async def test_an_edit_changes_the_only_occurrence(sandbox):
    assert await use(sandbox, "edit", path="m.py", old="    return x\n\n", new="    y = x\n    return y\n\n") == "edited m.py, line 6"
    assert b"    y = x\n    return y\n\n" in sandbox.files[f"{WORKDIR}/m.py"]


async def test_an_edit_says_why_it_cannot_be_made(sandbox):
    before = dict(sandbox.files)
    twice = await use(sandbox, "edit", path="m.py", old="def close(self):", new="x")
    assert "occurs 2 times (lines 13, 18)" in twice
    assert "the nearest is line 6: return x" in await use(sandbox, "edit", path="m.py", old="return xx", new="y")
    assert "line 6 has its first line" in await use(sandbox, "edit", path="m.py", old="      return x", new="y")
    assert "the same" in await use(sandbox, "edit", path="m.py", old="import os", new="import os")
    assert "empty" in await use(sandbox, "edit", path="m.py", old="", new="x")
    assert sandbox.files == before


async def test_an_edit_keeps_line_ends_and_foreign_bytes(sandbox):
    await use(sandbox, "edit", path="crlf.txt", old="one\ntwo", new="one\nhalf\ntwo")
    assert sandbox.files[f"{WORKDIR}/crlf.txt"] == b"one\r\nhalf\r\ntwo\r\n"
    await use(sandbox, "edit", path="latin.txt", old="= 1", new="= 2")
    assert sandbox.files[f"{WORKDIR}/latin.txt"] == b"caf\xe9 = 2\n"


async def test_an_edit_with_no_old_text_makes_a_new_file(sandbox):
    assert await use(sandbox, "edit", path="new.py", old="", new="x = 1") == "created new.py"
    assert sandbox.files[f"{WORKDIR}/new.py"] == b"x = 1\n"


async def test_an_edit_that_breaks_the_syntax_is_warned_of(sandbox):
    assert "does not parse now: line 5" in await use(sandbox, "edit", path="m.py", old="def first(x):", new="def first(x:")


async def test_text_that_is_no_unicode_is_refused(sandbox):
    assert "not valid Unicode" in await use(sandbox, "edit", path="m.py", old="import os", new="\ud800")


@pytest.mark.parametrize(
    "text", ["(" * 50_000, "-" * 200_000 + "1", "1" + "+1" * 90_000, "x" + ".y" * 90_000, "\0", "[" * 90 + "]" * 90, "a" * 10**6]
)
def test_hostile_source_is_only_data(text):
    found = outline(text)
    assert isinstance(found, Unparsed) or found == []


def test_a_name_is_found_by_its_last_part_when_no_exact_one_exists():
    definitions = outline(MODULE.decode())
    assert [one.name for one in find(definitions, "read")] == ["Reader.read"]
    assert [one.name for one in find(definitions, "Reader")] == ["Reader"]


@given(st.text("ab\n ", max_size=30), st.text("ab\n ", max_size=6), st.text("abc\n", max_size=6))
def test_replace_once_replaces_what_occurs_once_and_nothing_else(text, old, new):
    places = [at for at in range(len(text)) if old and text.startswith(old, at)]
    result = replace_once(text, old, new)
    if len(places) == 1 and old != new:
        assert isinstance(result, Edited) and result.text == text[: places[0]] + new + text[places[0] + len(old) :]
    else:
        assert isinstance(result, EditError)


@given(st.text(max_size=60), st.integers(1, 50))
def test_clip_keeps_short_texts_and_both_ends_of_long_ones(text, limit):
    clipped = clip(text, limit)
    assert (
        clipped == text
        if len(text) <= limit
        else clipped.startswith(text[: limit // 2]) and clipped.endswith(text[-(limit - limit // 2) :])
    )
