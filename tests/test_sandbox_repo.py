"""Diff, tree hash, tree files and patches, in real machines of both backends, against trees that try to fool them."""

import re
import tarfile

import pytest

from sandbox import FakeSandbox, Image, ResourceExhausted, SandboxError, apply_patch, diff, make_tree, tree_hash

CHANGES = r"""
echo 'x = 1' >> calc.py; printf 'no newline either' > open_end.txt; chmod +x calc.py; chmod -x run.sh
mkdir -p build/deep 'a dir' && echo new > build/deep/new.py && echo new > 'a dir/a "file"' && printf '\377\000' > new.bin
mv data.bin moved.bin; ln -s calc.py link; printf 'one\ntwo\r\n' > crlf.txt; printf 'line\nsep\302\205arated\342\200\250\n' > odd.txt
mkdir -p __pycache__ .pytest_cache && echo junk > __pycache__/junk.pyc && echo junk > .pytest_cache/junk
"""
EVIL = r"""
mark='touch /tmp/evil-ran; cat'
git config filter.evil.clean "$mark"; git config filter.evil.smudge "$mark"; git config diff.evil.textconv "$mark"
git config core.fsmonitor /testbed/evil.sh; git config core.hooksPath /testbed; git config core.pager /testbed/evil.sh
git config --global filter.evil.clean "$mark"; git config --global core.excludesFile /testbed/all
printf '#!/bin/sh\ntouch /tmp/evil-ran\n' > evil.sh; cp evil.sh pre-commit; cp evil.sh post-index-change; chmod +x *.sh p*
mkdir -p .git/hooks ~/bin && cp evil.sh .git/hooks/post-index-change && cp evil.sh ~/bin/git && cp evil.sh git
printf '* filter=evil diff=evil text eol=crlf ident -diff export-ignore\n' > .gitattributes; cp .gitattributes .git/info/attributes
echo '*' > .gitignore; echo '*' > all; mkdir -p .git/info; echo '*' > .git/info/exclude
git update-index --assume-unchanged calc.py; git update-index --skip-worktree run.sh
echo 'changed = 1' >> calc.py; echo changed >> run.sh; echo 'kept = 1' > hidden.py
mkdir nested && cd nested && git init -q . && echo 'kept = 2' > inside.py && git add . && git -c user.name=x -c user.email=x commit -qm x
"""


def touched(patch: str) -> set[str]:
    return set(re.findall(r"^diff --git \"?a/(.*?)\"? \"?b/", patch, re.M))


async def test_an_untouched_tree_has_no_diff_and_the_commits_own_hash(machine, image):
    assert await diff(machine, image) == ""
    assert await tree_hash(machine, image) == (await machine.run("git rev-parse 'HEAD^{tree}'")).text.strip()


async def test_a_diff_holds_every_kind_of_change_and_no_junk(machine, image):
    assert (await machine.run(CHANGES)).text == ""
    patch = await diff(machine, image)
    changed = {"calc.py", "open_end.txt", "run.sh", "new.bin", "data.bin", "moved.bin", "link", "crlf.txt", "odd.txt", "build/deep/new.py"}
    assert touched(patch) == changed | {r"a dir/a \"file\""}
    assert "old mode 100644\nnew mode 100755" in patch and "old mode 100755\nnew mode 100644" in patch
    assert "GIT binary patch" in patch and "new file mode 120000" in patch and r"\ No newline at end of file" in patch


async def test_a_diff_applied_to_a_fresh_machine_gives_the_same_tree(backend, machine, image, limits):
    await machine.run(CHANGES)
    patch = await diff(machine, image)
    fresh = await backend.start(image, limits)
    try:
        assert await apply_patch(fresh, patch)
        assert await tree_hash(fresh, image) == await tree_hash(machine, image)
        assert (await fresh.run("stat -c %A calc.py; readlink link; sha1sum < new.bin")).text == (
            await machine.run("stat -c %A calc.py; readlink link; sha1sum < new.bin")
        ).text
    finally:
        await fresh.close()


async def test_a_change_that_is_not_utf8_survives_as_text(backend, machine, image, limits):
    await machine.run(r"printf 'na\357ve caf\351\n' > latin.txt; echo 'x = 1' > new.py")
    patch = await diff(machine, image)
    assert patch.encode("ascii") and touched(patch) == {"latin.txt", "new.py"}
    fresh = await backend.start(image, limits)
    try:
        assert await apply_patch(fresh, patch)
        assert await fresh.read("/testbed/latin.txt") == b"na\xefve caf\xe9\n"
    finally:
        await fresh.close()


async def test_what_the_agent_wrote_for_git_neither_runs_nor_hides_a_change(machine, image):
    await machine.run(EVIL)
    await machine.run("rm -f /tmp/evil-ran")
    patch = await diff(machine, image)
    assert (await machine.run("ls /tmp/evil-ran")).exit_code == 2
    assert {"calc.py", "run.sh", "hidden.py", "nested/inside.py", ".gitattributes", ".gitignore"} <= touched(patch)
    assert "+changed = 1\n" in patch and "\r" not in patch


@pytest.mark.parametrize(
    "trick",
    [
        "rm -rf .git",
        "rm -rf .git; ln -s / .git",
        "rm calc.py; mkfifo calc.py",
        "rm calc.py; mkdir calc.py; echo x > calc.py/x; (cd calc.py; git init -q .)",
        "chmod 0 calc.py data.bin; mkdir shut; touch shut/in; chmod 0 shut",
        "ln -s / root; ln -s /proc/self/environ env; ln -s loop loop",
        "touch git~1 .GIT $'new\\nline' -- -f; mkdir '.git '; touch '.git /x'",
        "(while :; do echo x >> calc.py; echo y > f$RANDOM; done) > /dev/null 2>&1 & sleep 0.2",
        "head -c 1G /dev/zero > /tmp/full; head -c 1G /dev/zero > /dev/shm/full; true",
        "python3 -c \"import os; [open(f'/tmp/{i}', 'w').close() for i in range(5000)]\"; chmod 0 /tmp",
        "rm -rf .git/objects; mkdir -p a/b; git init -q --bare a/b",
    ],
)
async def test_no_tree_keeps_its_diff_from_being_taken(machine, image, trick):
    await machine.run(trick)
    patch = await diff(machine, image)
    assert patch == await diff(machine, image)


async def test_a_tree_too_large_to_compare_is_the_agents_own_doing(machine, image):
    await machine.run("head -c 31000000 /dev/urandom > big; cp big /tmp/big")
    with pytest.raises(ResourceExhausted, match="diff"):
        await diff(machine, image)


async def test_a_patch_that_does_not_apply_leaves_the_commit_as_it_was(machine, image):
    wrong = "diff --git a/calc.py b/calc.py\n--- a/calc.py\n+++ b/calc.py\n@@ -1,2 +1,2 @@\n-nothing like it\n+x\n-at all\n+y\n"
    for patch in (wrong, "nonsense", "", "--- /dev/null\n+++ b/../../tmp/outside\n@@ -0,0 +1 @@\n+x\n"):
        assert not await apply_patch(machine, patch)
        assert await diff(machine, image) == ""
    assert (await machine.run("ls /tmp/outside")).exit_code == 2


async def test_a_patch_with_shifted_lines_or_with_a_line_of_wrong_context_applies_as_officially(machine):
    """The latter by `patch --fuzz=5`, the harness' last resort."""
    await machine.run("seq 20 > long.txt; git add long.txt; git -c user.name=a -c user.email=a commit -qm long")
    plain = "--- a/long.txt\n+++ b/long.txt\n@@ -9,5 +9,5 @@\n 9\n 10\n-11\n+eleven\n 12\n 13\n"
    for patch in (plain, plain.replace("-9,5 +9,5", "-2,5 +2,5"), plain.replace(" 9", " nine"), plain.replace("\n", "\r\n")):
        assert await apply_patch(machine, patch)
        assert "10\neleven\n12\n" in (await machine.run("cat long.txt; git checkout -q -- .; git clean -fdq")).text
    assert not await apply_patch(machine, plain.replace("-11", "-nothing like it"))


async def test_what_patch_reads_and_git_does_not_makes_a_patch_invalid(machine):
    """patch(1) takes an indented diff for one; git, and whoever looks for protected files in a patch, do not."""
    await machine.run("seq 20 > long.txt; git add long.txt; git -c user.name=a -c user.email=a commit -qm long")
    fuzzy = "--- a/long.txt\n+++ b/long.txt\n@@ -9,5 +9,5 @@\n nine\n 10\n-11\n+eleven\n 12\n 13\n"
    hidden = "  --- /dev/null\n  +++ b/conftest.py\n  @@ -0,0 +1 @@\n  +x = 1\n"
    assert await apply_patch(machine, fuzzy)
    await machine.run("git checkout -q -- .; git clean -fdq")
    assert not await apply_patch(machine, fuzzy + hidden)
    assert (await machine.run("git status --porcelain --ignored")).text == ""


async def test_git_that_cannot_be_set_up_is_a_failure_of_the_machine(image):
    with pytest.raises(SandboxError):
        await diff(FakeSandbox({"git read-tree": SandboxError("gone")}), image)


async def test_an_image_without_a_tree_has_no_diff():
    with pytest.raises(ValueError, match="without a tree"):
        await diff(FakeSandbox(), Image("greengrad/env:0"))


def test_a_tree_is_the_same_bytes_each_time_and_its_commit_depends_on_content_alone(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "pkg").mkdir(parents=True)
        (tmp_path / name / "pkg" / "a.py").write_text("x = 1\n")
        (tmp_path / name / "run").write_text("#!/bin/sh\n")
        (tmp_path / name / "run").chmod(0o755 if name == "one" else 0o711)
        (tmp_path / name / "pkg" / "__pycache__").mkdir()
        (tmp_path / name / "pkg" / "__pycache__" / "a.pyc").write_text(name)
    commits = {make_tree(tmp_path / name, tmp_path / f"{name}.tar") for name in ("one", "two", "one")}
    assert len(commits) == 1 and len(commits.pop()) == 40
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    (tmp_path / "two" / "pkg" / "a.py").write_text("x = 2\n")
    make_tree(tmp_path / "two", tmp_path / "two.tar")
    assert (tmp_path / "one.tar").read_bytes() != (tmp_path / "two.tar").read_bytes()


def test_a_tree_holds_one_commit_and_nothing_of_the_host(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_AUTHOR_NAME", "A Person")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_bytes(b"one\r\n")
    (tmp_path / "source" / ".gitattributes").write_text("* text=auto\n")
    make_tree(tmp_path / "source", tmp_path / "t.tar")
    with tarfile.open(tmp_path / "t.tar") as tar:
        members = tar.getmembers()
    assert {(m.uid, m.gid, m.uname, m.mtime) for m in members} == {(0, 0, "", 946684800)}
    assert not [m.name for m in members if re.search(r"hooks|logs|description|ORIG_HEAD|COMMIT_EDITMSG", m.name)]
    assert b"A Person" not in (tmp_path / "t.tar").read_bytes()


async def test_git_status_is_clean_in_a_fresh_machine(machine):
    assert (await machine.run("git status --porcelain; git log --format=%s; git fsck --strict")).text == "base\n"
