"""Diffs as text: cut up, put together, left out; and which names are never let through."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.patches import diff_text, drop_files, essence, patch_paths, split_patch
from tasks.protect import _decides

LINES = st.lists(
    st.sampled_from(["a\n", "b\n", "c\x0c\n", "--- x\n", "+++ y\n", "@@ -1 +1 @@\n", "diff --git a/q b/q\n", "\n", "é\r\n"]), max_size=9
)
TEXT = st.builds(lambda lines, end: "".join(lines) + end, LINES, st.sampled_from(["", "no newline"]))


@settings(max_examples=60, deadline=None)
@given(old=TEXT, new=TEXT)
def test_git_applies_what_we_write_and_the_sections_put_together_are_the_patch(tmp_path_factory, old, new):
    folder = tmp_path_factory.mktemp("apply")
    (folder / "f.txt").write_bytes(old.encode())
    patch = diff_text("f.txt", old, new) + diff_text("d/new.txt", None, new or "x")
    assert "".join(section.text for section in split_patch(patch)) == patch
    assert set(patch_paths(patch)) == {"d/new.txt"} | ({"f.txt"} if old != new else set())
    subprocess.run(["git", "apply", "-"], input=patch.encode(), cwd=folder, check=True, timeout=30)
    assert (folder / "f.txt").read_bytes() == new.encode() and (folder / "d" / "new.txt").read_bytes() == (new or "x").encode()


@settings(deadline=None)
@given(names=st.lists(st.sampled_from(["a.py", "conftest.py", "b/c.py", "b/conftest.py", "x y.py"]), unique=True), data=st.data())
def test_what_is_left_out_takes_nothing_else_with_it(names, data):
    texts = {name: data.draw(TEXT) for name in names}
    patch = "".join(diff_text(name, None, text or "x") for name, text in texts.items())
    kept, dropped = drop_files(patch, lambda path: path.endswith("conftest.py"))
    assert dropped == tuple(name for name in names if name.endswith("conftest.py"))
    assert patch_paths(kept) == tuple(name for name in names if not name.endswith("conftest.py"))


HUNK = "@@ -0,0 +1 @@\n+x\n"
PLAIN = "--- a/conftest.py\n+++ b/conftest.py\n" + HUNK
OTHER = "diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -1 +1 @@\n-y\n+x\n"
SLY = {
    "a rename": "diff --git a/a.py b/conftest.py\nsimilarity index 100%\nrename from a.py\nrename to conftest.py\n",
    "a copy": "diff --git a/a.py b/x/conftest.py\nsimilarity index 100%\ncopy from a.py\ncopy to x/conftest.py\n",
    "a mode": "diff --git a/conftest.py b/conftest.py\nold mode 100644\nnew mode 100755\n",
    "an empty file": "diff --git a/conftest.py b/conftest.py\nnew file mode 100644\nindex 0000000..e69de29\n",
    "a plain diff": PLAIN,
    "a plain diff with dates": PLAIN.replace(".py\n", ".py\t2020-01-01\n"),
    "quotes": f'diff --git "a/conftest.py" "b/conftest.py"\nnew file mode 100644\n--- /dev/null\n+++ "b/conftest.py"\n{HUNK}',
    "octal quotes": f'diff --git "a/\\143onftest.py" "b/\\143onftest.py"\n--- "a/\\143onftest.py"\n+++ "b/\\143onftest.py"\n{HUNK}',
    "slashes and dots": "diff --git a/./conftest.py b/.//conftest.py\n--- a/./conftest.py\n+++ b/.//conftest.py\n@@ -1 +1 @@\n-y\n+x\n",
    "behind another file": OTHER + PLAIN,
    "behind a binary file": "diff --git a/a b/a\nGIT binary patch\nliteral 1\nIcmZPo000310RR91\n\n" + PLAIN,
    "a deletion": "diff --git a/conftest.py b/conftest.py\ndeleted file mode 100644\n--- a/conftest.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n",
    "an index line": "Index: conftest.py\n" + OTHER,
    "an index line inside": OTHER.replace("--- a", "Index: conftest.py\n--- a"),
    "a context diff": "*** a/conftest.py\n--- b/conftest.py\n***************\n*** 1 ****\n! x\n--- 1 ----\n! y\n",
    "an ed script": "0a\nx = 1\n.\n",
}


@pytest.mark.parametrize("how", SLY)
def test_no_way_of_writing_a_patch_hides_the_file_it_touches(how):
    kept, _ = drop_files(SLY[how], lambda path: path.split("/")[-1] == "conftest.py")
    assert "conftest" not in kept and "143" not in kept and "x = 1" not in kept


def test_a_hunk_that_looks_like_a_header_is_text():
    patch = diff_text("notes.txt", "-- a/conftest.py\nx\n", "++ b/conftest.py\n@@ -1 +1 @@\n")
    assert "--- a/conftest.py" not in [path for section in split_patch(patch) for path in section.paths]
    assert patch_paths(patch) == ("notes.txt",)


PROTECTED = """conftest.py a/b/conftest.py pytest.ini a/pytest.ini tox.ini setup.cfg pyproject.toml pytest.toml sitecustomize.py
    src/usercustomize.py sitecustomize/__init__.py x.pth pytest.py _pytest/x.py src/pytest/__init__.py pluggy/__init__.py json.py
    re/__init__.py .git/config .gitattributes a/.gitmodules x.egg-info/entry_points.txt x-1.dist-info/entry_points.txt
    greengrad_witness.py"""
ORDINARY = "a.py src/pkg/json.py docs/conf.py pkg/config.toml code/main.py pkg/pytest_plugin.py README pkg/re/x.py"


@pytest.mark.parametrize("path", PROTECTED.split())
def test_names_that_load_themselves_are_protected(path):
    assert _decides(path)


@pytest.mark.parametrize("path", ORDINARY.split())
def test_ordinary_names_are_not(path):
    assert not _decides(path)


AMBIGUOUS = {
    "a time after the name": "--- /dev/null\n+++ b/conftest.py 2020-01-01 00:00:00.000000000 +0000\n",
    "a word after the quoted name": '--- /dev/null\n+++ "b/conftest.py" x\n',
    "a name with spaces": "--- /dev/null\n+++ b/a b.py\t\n",
    "a name in another alphabet": '--- /dev/null\n+++ "b/\\303\\251.py"\n',
    "a backslash": "--- /dev/null\n+++ b/a\\b.py\n",
}


@pytest.mark.parametrize("header", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_git_writes_the_file_whose_name_was_read_here(header, tmp_path):
    (section,) = split_patch(header + HUNK)
    subprocess.run(["git", "apply", "-"], input=section.text.encode(), cwd=tmp_path, check=True, timeout=30)
    (written,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert str(written.relative_to(tmp_path)) in section.paths and split_patch(section.text)[0].paths == section.paths


def test_what_a_patch_does_is_the_same_in_another_context_and_with_other_ids():
    plain = diff_text("f.py", "a\nb\nc\n", "a\nx\nc\n") + diff_text("new.py", None, "y\n")
    git = plain.replace("--- a/f.py", "index 123..456 100644\n--- a/f.py").replace("@@ -1,3 +1,3 @@\n a\n", "@@ -2,2 +2,2 @@ def f():\n")
    assert essence(git) == essence(plain) != essence("")
    for other in (
        diff_text("f.py", "a\nb\nc\n", "a\nz\nc\n") + diff_text("new.py", None, "y\n"),
        diff_text("f.py", "a\nb\nc\n", "a\nx\nc\n"),
        plain.replace("new.py", "old.py"),
        plain.replace("new file mode 100644", "new file mode 100755"),
    ):
        assert essence(other) != essence(plain)
