import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.action import FormatError, check_call, parse, render
from pipeline.types import ToolCall

TEXT = st.text(st.characters(codec="utf-8"), min_size=1)
WORD = st.text("abcdefghijklmnopqrstuvwxyz_./", min_size=1)
LINE_OR_MARKS = st.lists(st.sampled_from(["=======", "<<<<<<<", ">>>>>>>", "```", "````", "x = 1", "", "  y"]), min_size=1).map("\n".join)
CALLS = st.one_of(
    st.builds(lambda c: ToolCall("bash", {"command": c}), st.one_of(TEXT, LINE_OR_MARKS).filter(str.strip)),
    st.builds(lambda p: ToolCall("view", {"path": p}), WORD),
    st.builds(lambda p, n: ToolCall("view", {"path": p, "name": n}), WORD, WORD),
    st.builds(
        lambda p, o, n: ToolCall("edit", {"path": p, "old": o, "new": n}),
        WORD,
        st.one_of(TEXT, LINE_OR_MARKS),
        st.one_of(TEXT, LINE_OR_MARKS),
    ),
    st.just(ToolCall("submit", {})),
)


@pytest.mark.parametrize("action_format", ["fenced", "tool_json"])
@given(call=CALLS, thought=st.text("abc ,.\n"))
def test_what_is_rendered_is_parsed_back_exactly(action_format, call, thought):
    assert parse(f"{thought}\n{render(call, action_format)}\nDone.", action_format) == call


@pytest.mark.parametrize("action_format", ["fenced", "tool_json"])
@given(text=st.one_of(st.text(), LINE_OR_MARKS, st.text('`{}<>=/tool_calbshedit\n" ', max_size=200)))
def test_any_text_gives_a_call_or_a_message(action_format, text):
    result = parse(text, action_format)
    assert isinstance(result, ToolCall) or (isinstance(result, FormatError) and result.message)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("I am done.", "No fenced block"),
        ("```bash\nls\n```\n```submit\n```", "2 fenced blocks"),
        ("```python\nprint()\n```", "must be one of bash, view, edit, submit"),
        ("```bash\nls", "not closed"),
        ("```bash\n\n```", "empty"),
        ("```view\n```", "path on line 1"),
        ("```view\na\nb\nc\n```", "path on line 1"),
        ("```edit\na.py\nx\n```", "An edit block is"),
        ("```edit\na.py\n<<<<<<<\nx\n>>>>>>>\n```", "has 0 lines"),
        ("```edit\na.py\n<<<<<<<\nx\n=======\n=======\n>>>>>>>\n```", "longer markers"),
        ("```submit\nplease\n```", "must be empty"),
    ],
)
def test_a_malformed_turn_is_answered_with_what_is_wrong(text, says):
    result = parse(text)
    assert isinstance(result, FormatError) and says in result.message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("done", "0 tool calls"),
        ('<tool_call>{"name": "submit", "arguments": {}}</tool_call>' * 2, "2 tool calls"),
        ("<tool_call>{</tool_call>", "not valid JSON"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "not valid JSON"),
        ("<tool_call>[]</tool_call>", "must be an object"),
        ('<tool_call>{"name": "rm", "arguments": {}}</tool_call>', "Unknown tool"),
        ('<tool_call>{"name": "bash", "arguments": {}}</tool_call>', "needs command"),
        ('<tool_call>{"name": "bash", "arguments": {"command": 1}}</tool_call>', "strings"),
        ('<tool_call>{"name": "submit", "arguments": {"why": "x"}}</tool_call>', "does not know why"),
    ],
)
def test_a_malformed_tool_call_is_answered_with_what_is_wrong(text, says):
    result = parse(text, "tool_json")
    assert isinstance(result, FormatError) and says in result.message


def test_a_view_knows_lines_from_a_name():
    assert parse("```view\na.py\n10-20\n```") == ToolCall("view", {"path": "a.py", "lines": "10-20"})
    assert parse("```view\na.py\nReader.read\n```") == ToolCall("view", {"path": "a.py", "name": "Reader.read"})


def test_an_edit_keeps_indentation_and_blank_lines():
    text = "```edit\na.py\n<<<<<<<\n\n    x\n=======\n    y\n\n>>>>>>>\n```"
    assert parse(text) == ToolCall("edit", {"path": "a.py", "old": "\n    x", "new": "    y\n"})


def test_a_script_names_its_tool_as_a_string():
    assert isinstance(check_call(["bash"], {}), FormatError)
    assert check_call("submit", {}) == ToolCall("submit", {})
