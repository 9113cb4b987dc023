"""Sealing: a repository with every kind of remains, searched as an attacker would; planted copies of the fix; images with their own."""

import io
import os
import shutil
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox import WORKDIR, Image, Limits, SandboxError, SealError, Secret, diff, make_tree, open_backend, seal, seal_all, sealed
from sandbox.docker_images import RUN
from sandbox.images import BASE
from sandbox.own_repo import clean
from sandbox.owner import owner
from sandbox.store import home

BASE_CODE = "import os\n\n\ndef add(a, b):\n    # adds\n    return a - b\n\n\ndef rest():\n    return os.name\n"
FIX = """def add(a, b):
    # adds
    total = float(a)
    total += float(b)
    check(total, "EMBARGOED")
    return total
"""
FIXED_CODE = BASE_CODE.replace("def add(a, b):\n    # adds\n    return a - b\n", FIX)
HIDDEN_TEST = "from calc import add\n\n\ndef test_add():\n    assert add(2, 3) == 5  # EMBARGOED\n    assert add(0, 0) == 0\n"
LIMITS = Limits(memory_mb=512, disk_mb=128, episode_seconds=300.0)
WHO = {f"GIT_{role}_{key}": "x" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
ENV = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", **WHO}
ATTACK = r"""
{ git log --all -p --reflog; git show-ref; git for-each-ref; git stash list -p; git reflog; git fsck --unreachable --no-reflogs --lost-found
  git cat-file --batch-all-objects --batch --unordered
  for id in $(git cat-file --batch-all-objects --batch-check='%(objectname)'); do git cat-file -p $id; done
  for pack in .git/objects/pack/*.idx; do git verify-pack -v $pack; done
  python3 - <<'END'
import pathlib, zlib
for path in pathlib.Path("/testbed").rglob("*"):
    if path.is_file() and not path.is_symlink():
        data = path.read_bytes()
        print(data)
        at = 0
        while (at := data.find(b"\x78", at)) >= 0:
            try: print(zlib.decompressobj().decompress(data[at:]))
            except zlib.error: pass
            at += 1
END
} > /tmp/loot 2>&1
grep -c EMBARGOED /tmp/loot
"""


def git(folder: Path, *arguments: str, stdin: str = "") -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, env=ENV, input=stdin, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def pack(folder: Path, out: Path) -> Path:
    with tarfile.open(out, "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return out


def small_repository(folder: Path) -> str:
    """A commit before the base, and the base; returns its id."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "trunk")
    (folder / "old.py").write_text("EMBARGOED_PAST = 'a fix that was reverted later'\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    git(folder, "rm", "-q", "old.py")
    (folder / "tests").mkdir()
    (folder / "tests" / "test_old.py").write_text("def test_old():\n    pass\n")
    (folder / "calc.py").write_text(BASE_CODE)
    (folder / ".gitignore").write_text("build/\n*.pyc\n")
    (folder / ".gitattributes").write_text("*.py filter=evil diff=evil text eol=crlf\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "base")
    return git(folder, "rev-parse", "HEAD")


def secret_of(folder: Path, base: str) -> Secret:
    """The fix and its hidden test as patches onto the base; leaves the fix as a commit with a tag."""
    (folder / "calc.py").write_text(FIXED_CODE)
    git(folder, "commit", "-qam", "EMBARGOED fix")
    gold = git(folder, "diff", base, "HEAD") + "\n"
    (folder / "tests" / "test_add.py").write_text(HIDDEN_TEST)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "EMBARGOED tests")
    test = git(folder, "diff", "HEAD~1", "HEAD") + "\n"
    git(folder, "tag", "-am", "EMBARGOED", "v2")
    return Secret(base, gold, test)


def remains(folder: Path, base: str) -> None:
    """Everything in which a repository may remember the fix; the working tree is the base's afterwards."""
    future = git(folder, "rev-parse", "HEAD")
    (folder / "calc.py").write_text(FIXED_CODE + "# EMBARGOED stash\n")
    git(folder, "stash")
    git(folder, "checkout", "-qB", "trunk", base)
    git(folder, "update-ref", f"refs/tags/{base}", future)
    git(folder, "update-ref", f"refs/heads/{base}", future)
    git(folder, "update-ref", "refs/remotes/origin/main", future)
    git(folder, "update-ref", "refs/pull/7/head", future)
    git(folder, "pack-refs", "--all")
    git(folder, "remote", "add", "origin", "/somewhere/EMBARGOED")
    git(folder, "notes", "add", "-m", "EMBARGOED note", base)
    git(folder, "replace", base, future)
    git(folder, "hash-object", "-w", "--stdin", stdin=FIXED_CODE + "# EMBARGOED dangling\n")
    git(folder, "worktree", "add", "-q", "--detach", str(folder.parent / "worktree"), future)
    for name in ("ORIG_HEAD", "FETCH_HEAD", "CHERRY_PICK_HEAD", "BISECT_LOG"):
        (folder / ".git" / name).write_text(f"{future}\tbranch 'EMBARGOED' of /somewhere\n")
    (folder / ".git" / "COMMIT_EDITMSG").write_text("EMBARGOED\n")


def traps(folder: Path) -> None:
    """Settings and hooks that would run or hide something, a nested repository, alternates, what patch(1) leaves behind."""
    mark = "sh -c 'touch /tmp/evil-ran; cat'"
    for key in ("filter.evil.clean", "filter.evil.smudge", "diff.evil.textconv", "core.fsmonitor", "core.alternateRefsCommand"):
        git(folder, "config", key, mark)
    git(folder, "config", "core.hooksPath", ".git/hooks")
    git(folder, "config", "uploadpack.packObjectsHook", mark)
    hooks = folder / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-checkout", "post-index-change", "reference-transaction", "pre-commit"):
        (hooks / name).write_text("#!/bin/sh\ntouch /tmp/evil-ran # EMBARGOED\n")
        (hooks / name).chmod(0o755)
    (folder / "calc.py.orig").write_text(FIXED_CODE)
    (folder / "calc.py.rej").write_text(FIX)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "calc.cpython-311.pyc").write_bytes(b"EMBARGOED")
    nested = folder / "vendored"
    nested.mkdir()
    git(nested, "init", "-q")
    (nested / "calc.py").write_text(FIXED_CODE + "# EMBARGOED nested\n")
    git(nested, "add", ".")
    git(nested, "commit", "-qm", "EMBARGOED")
    (nested / "calc.py").write_text("vendored = 1\n")
    other = folder / ".git" / "other"
    git(folder, "init", "-q", "--bare", str(other))
    git(other, "hash-object", "-w", "--stdin", stdin="EMBARGOED in an alternate\n")
    (folder / ".git" / "objects" / "info" / "alternates").write_text("../other/objects\n")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, environment) -> tuple[Image, Secret]:
    """A repository with all remains and traps, and changes that are not committed."""
    folder = tmp_path_factory.mktemp("hostile") / "repository"
    base = small_repository(folder)
    secret = secret_of(folder, base)
    remains(folder, base)
    traps(folder)
    (folder / "calc.py").write_text(BASE_CODE + "patched_by_the_image = True\n")
    (folder / "build").mkdir()
    (folder / "build" / "made.txt").write_text("ignored by git, made by the image\n")
    return Image(environment, pack(folder, folder.parent / "tree.tar")), secret


@pytest.fixture(scope="module")
def plain(tmp_path_factory, environment) -> tuple[Image, Secret]:
    """A tree made by make_tree, and its secret."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "source" / "tests").mkdir(parents=True)
    (folder / "source" / "calc.py").write_text(BASE_CODE)
    (folder / "source" / "tests" / "test_old.py").write_text("def test_old():\n    pass\n")
    base = make_tree(folder / "source", folder / "tree.tar")
    small_repository(folder / "real")
    secret = secret_of(folder / "real", git(folder / "real", "rev-parse", "HEAD"))
    return Image(environment, folder / "tree.tar"), replace(secret, base_commit=base)


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch, environment, request):
    """A store without proofs; environments and programs come from the shared one."""
    shared = home()
    monkeypatch.setenv("GREENGRAD_HOME", str(tmp_path / "home"))
    for kind in ("envs", "venvs", "bin", "etc", "locks"):
        (shared / kind).mkdir(exist_ok=True)
        (home() / kind).symlink_to(shared / kind)


async def started(backend, image):
    return await backend.start(image, LIMITS)


async def test_nothing_of_the_future_or_the_past_is_left_for_an_attacker(backend, hostile):
    image, secret = hostile
    before = await started(backend, image)
    assert int((await before.run(ATTACK)).text) > 20  # the attack finds what is there
    await before.close()
    machine = await started(backend, await sealed(backend, image, secret))
    try:
        assert (await machine.run(ATTACK)).text == "0\n"
        assert (await machine.run("ls /tmp/evil-ran")).exit_code == 2
        assert (await machine.run("git rev-list --all")).text.split()[1:] == [secret.base_commit]
        assert (await machine.run("git fsck --full --unreachable --no-reflogs")).text == ""
        assert (
            await machine.run("git tag; git remote; git stash list; git reflog; git notes list; git replace; git worktree list")
        ).text.split()[0] == WORKDIR
    finally:
        await machine.close()


async def test_the_base_commit_keeps_its_id_and_a_diff_holds_only_the_agents_work(backend, hostile):
    image, secret = hostile
    safe = await sealed(backend, image, secret)
    machine = await started(backend, safe)
    try:
        assert await diff(machine, safe) == ""
        shown = await machine.run(f"git cat-file -p {secret.base_commit} | git hash-object -t commit --stdin -w=no 2>/dev/null || "
                                  f"git cat-file commit {secret.base_commit} | git hash-object -t commit --stdin")  # fmt: skip
        assert shown.text.split()[-1] == secret.base_commit
        assert "patched_by_the_image" in (await machine.run("cat calc.py")).text
        assert (await machine.run("cat build/made.txt vendored/calc.py")).exit_code == 0
        await machine.run("echo mine = 1 >> calc.py")
        patch = await diff(machine, safe)
        assert "+mine = 1\n" in patch and "patched_by_the_image = True\n+" in patch and patch.count("diff --git") == 1
        await machine.run(f"git checkout {secret.base_commit} -- calc.py")
        assert (await machine.read(f"{WORKDIR}/calc.py")).decode() == BASE_CODE
    finally:
        await machine.close()


async def test_sealing_is_done_once_and_a_tree_of_ours_stays_as_it_is(backend, plain, hostile):
    image, secret = plain
    assert await sealed(backend, image, secret) == image
    first = await sealed(backend, *hostile)
    assert first.tree is not None and first.tree.is_relative_to(home()) and first.tree != hostile[0].tree
    stamp = first.tree.stat().st_mtime_ns
    assert await sealed(backend, *hostile) == first and first.tree.stat().st_mtime_ns == stamp
    assert (await sealed(backend, first, hostile[1])) == first  # what is sealed needs no sealing


async def test_a_machine_is_sealed_in_place(backend, hostile):
    image, secret = hostile
    machine = await started(backend, image)
    try:
        await seal(machine, secret)
        assert (await machine.run(ATTACK)).text == "0\n"
        assert (await machine.run("ls -A /tmp")).text == "loot\n"
    finally:
        await machine.close()


PLANTS = {
    "a fixed copy beside": ("cp /tmp/fixed /home/agent/calc_copy.txt", "a file of the fix in /home/agent/calc_copy.txt"),
    "lines of it": ("{ echo x = 1; sed -n 4,9p /tmp/fixed; echo; } > /home/agent/notes", "lines of the fix in /home/agent/notes"),
    "with other ends of lines": ("sed 's/$/\\r/' /tmp/fixed > /home/agent/dos.py", "lines of the fix"),
    "a wheel": ("cd /tmp && mkdir pkg && cp fixed pkg/calc.py && python3 -m zipfile -c /home/agent/calc.whl pkg", "calc.whl"),
    "an archive in an archive": (
        "cd /tmp && tar czf in.tgz fixed && python3 -m tarfile -c o.tar.bz2 in.tgz && mv o.tar.bz2 ~/out.bin; rm in.tgz",
        "out.bin",
    ),
    "a cache of pip": ("mkdir -p ~/.cache/pip/http && echo anything > ~/.cache/pip/http/body", "/home/agent/.cache/pip/http/body"),
    "compiled alone": (
        "mkdir -p ~/lib/__pycache__ && cp /tmp/fixed ~/lib/calc.py && python3 -m compileall -q ~/lib && rm ~/lib/calc.py",
        "__pycache__/calc.cpython",
    ),
    "in the tree, ignored": ("mkdir build && cp /tmp/fixed build/calc.py", "/testbed/build/calc.py"),
    "a hidden test": ("echo other > tests/test_add.py", "hidden tests: tests/test_add.py"),
    "a hidden test by its text": ("cp /tmp/hidden tests/copied.txt", "/testbed/tests/copied.txt"),
    "another commit in the same pack": (
        "git hash-object -w /tmp/fixed > /dev/null; git -c user.name=x -c user.email=x commit -q --allow-empty -m x",
        "nothing",
    ),
}


@pytest.mark.parametrize("name", PLANTS)
async def test_a_planted_answer_is_found_and_told_without_being_said(backend, plain, name):
    image, secret = plain
    command, where = PLANTS[name]
    machine = await started(backend, image)
    try:
        await machine.write("/tmp/fixed", FIXED_CODE.encode())
        await machine.write("/tmp/hidden", HIDDEN_TEST.encode())
        done = await machine.run(f"{command}; rm -rf /tmp/fixed /tmp/hidden /tmp/pkg")
        assert done.text == ""
        if where == "nothing":  # sealing removes it
            await seal(machine, secret)
            assert (await machine.run("git rev-list --all")).text.split() == [secret.base_commit]
            return
        with pytest.raises(SealError) as told:
            await seal(machine, secret)
        assert where in str(told.value) and "EMBARGOED" not in str(told.value)
        assert (await machine.run("ls -A /tmp")).text == ""
    finally:
        await machine.close()


async def test_a_fixed_package_in_the_environment_is_found_for_its_task_alone(backend, plain, environment, tmp_path):
    """The environment holds packaging; a task whose fix is in packaging cannot be used there."""
    source = next((home() / "envs" / environment.rpartition(":")[2]).glob("site/packaging/version.py")).read_text()
    line = next(line for line in source.split("\n") if "return self._version.epoch" in line or "self._version" in line)
    folder = tmp_path / "packaging"
    (folder / "packaging").mkdir(parents=True)
    (folder / "packaging" / "version.py").write_text(source.replace(line, line.replace("self", "other"), 1) + "\n# drifted since\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    base = make_tree(folder, tmp_path / "tree.tar")
    (folder / "packaging" / "version.py").write_text(source + "\n# drifted since\n")
    secret = Secret(base, git(folder, "diff") + "\n", "")
    good, bad = await seal_all(backend, [plain, (Image(environment, tmp_path / "tree.tar"), secret)])
    assert good == plain[0]
    assert isinstance(bad, SealError) and "packaging/version.py" in str(bad) and line.strip() not in str(bad)


async def test_a_tree_that_looks_sealed_may_not_hide_the_answer_beside_its_objects(backend, plain, tmp_path):
    """In the index' extensions, in a file that git never reads, in the message of the base commit."""
    image, secret = plain
    for name in (".git/index", ".git/info/refs", ".git/objects/info/packs"):
        folder = tmp_path / name.replace("/", "-")
        with tarfile.open(image.tree) as tar:
            tar.extractall(folder, filter="fully_trusted")
        with (folder / name).open("ab") as file:
            file.write(b"\n" + FIX.encode())
        safe = await sealed(backend, Image(image.name, pack(folder, tmp_path / "t.tar")), secret)
        assert safe.tree is not None and safe.tree.is_relative_to(home()) and b"EMBARGOED" not in safe.tree.read_bytes()
    folder = tmp_path / "message"
    base = small_repository(folder)
    git(folder, "commit", "--amend", "-qm", f"base\n\n{FIX}")
    with pytest.raises(SealError, match="the message of the commit"):
        told = replace(secret, base_commit=git(folder, "rev-parse", "HEAD"))
        await sealed(backend, Image(image.name, pack(folder, tmp_path / "t.tar")), told)
    assert base


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"base_commit": "0" * 40}, "does not hold the commit"),
        ({"base_commit": "main"}, "40 hex digits"),
        ({"gold_patch": "--- a/calc.py\n+++ b/calc.py\n@@ -1,1 +1,1 @@\n-nothing like it\n+x\n"}, "gold patch does not apply"),
        ({"test_patch": "nonsense\n"}, "test patch does not apply"),
    ],
)
async def test_what_cannot_be_shown_is_refused(backend, plain, change, why):
    image, secret = plain
    with pytest.raises(SealError, match=why):
        await sealed(backend, image, replace(secret, **change))
    assert not (home() / "sealed").exists()


async def test_a_damaged_or_foreign_git_folder_is_refused(backend, plain, tmp_path, environment):
    _, secret = plain
    for name, content in (("file", "gitdir: /elsewhere\n"), ("none", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "calc.py").write_text(BASE_CODE)
        if content:
            (tmp_path / name / ".git").write_text(content)
        tree = pack(tmp_path / name, tmp_path / f"{name}.tar")
        with pytest.raises(SealError, match=r"no \.git folder"):
            await sealed(backend, Image(environment, tree), secret)


def test_the_looker_opens_archives_whatever_they_are_named(tmp_path):
    from sandbox import look

    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("x", "one\ntwo words\nthree\n")
    (tmp_path / "damaged").write_bytes(b"PK\3\4 no archive")
    query = look.Query(["two words\nthree"], [])
    assert look.look(query, [str(tmp_path)], []) == [(0, str(tmp_path / "a"))]


@pytest.fixture
def build(tmp_path):
    """Makes images that hold a repository in WORKDIR, as the official ones do; removed afterwards."""
    made = []

    def make(image: Image, name: str, more: str) -> str:
        context = tmp_path / f"context{len(made)}"
        context.mkdir()
        shutil.copy(image.tree, context / "tree.tar")
        (context / "Dockerfile").write_text(f"FROM {BASE}\nADD tree.tar {WORKDIR}/\n{more}\n")
        made.append(name)
        docker("build", "-q", "--network=none", "-t", name, str(context))
        return name

    yield make
    for name in made:
        started_as = docker("images", "-q", f"{RUN}{docker('inspect', '-f', '{{.Id}}', name).strip()[7:23]}*").split()
        docker("rmi", "-f", *started_as, name)


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.docker
async def test_an_image_with_its_own_repository_is_sealed_before_it_is_started(build, hostile):
    backend = open_backend("docker")
    unfit = "mkfifo pipe && chmod 0 .gitignore && chmod u+s calc.py && mkdir shut && chmod 0 shut"
    own_image = build(hostile[0], "greengrad/test-own-repository:1", f"RUN cd {WORKDIR} && {unfit}")
    with pytest.raises(SandboxError, match="must be sealed"):
        await started(backend, Image(own_image))
    safe = await sealed(backend, Image(own_image), hostile[1])
    assert created() == ""
    machine = await started(backend, safe)
    try:
        assert (await machine.run(ATTACK)).text == "0\n"
        assert await diff(machine, safe) == ""
        await machine.run("echo mine = 1 >> calc.py; echo new > shut/new")
        patch = await diff(machine, safe)
        assert patch.count("diff --git") == 2 and "+mine = 1\n" in patch
        await machine.run(f"git checkout {hostile[1].base_commit} -- calc.py")
        assert (await machine.read(f"{WORKDIR}/calc.py")).decode() == BASE_CODE
        assert (await machine.run("find . -perm /6000 -o -type p")).text == ""
        assert (await machine.run("umount -l /testbed || unshare -rm umount -l /testbed")).exit_code  # the image's own lies below it
    finally:
        await machine.close()
    assert await sealed(backend, Image(own_image), hostile[1]) == safe


@pytest.mark.docker
async def test_an_image_with_a_fixed_copy_elsewhere_is_refused(build, plain):
    """In a place that no machine covers: the image's own packages."""
    place = "/usr/lib/python3/dist-packages/copy_of_it.py"
    lines = "\\n".join(FIXED_CODE.replace('"', '\\"').split("\n"))
    name = build(plain[0], "greengrad/test-leaky:1", f'RUN mkdir -p {Path(place).parent} && printf "{lines}" > {place}')
    with pytest.raises(SealError, match=place):
        await sealed(open_backend("docker"), Image(name), plain[1])


@pytest.mark.docker
async def test_an_image_without_a_repository_says_so(environment):
    backend = open_backend("docker")
    with pytest.raises(SandboxError, match="/testbed"):
        await backend.own_tree(Image(BASE))
    assert created() == ""


@pytest.mark.docker
async def test_a_repository_that_lies_elsewhere_in_its_image_is_found_there_in_the_machine_too(build, plain):
    """Its own path leads to WORKDIR, and what is to be hidden is in neither place."""
    name = build(
        plain[0], "greengrad/test-elsewhere:1", f"RUN mv {WORKDIR} /app && mkdir -p /app/hidden && echo secret > /app/hidden/test_x.py"
    )
    backend = open_backend("docker")
    image = Image(name, home="/app", hide=("hidden",))
    safe = await sealed(backend, image, plain[1])
    machine = await started(backend, safe)
    try:
        assert (await machine.run("cat /app/calc.py")).text == BASE_CODE and (await machine.run("readlink /app")).text == f"{WORKDIR}\n"
        assert (await machine.run("ls -d /app/hidden || find / -name test_x.py 2>/dev/null | grep -v proc")).text.count("\n") == 1
        await machine.run("cd /app && echo mine = 1 >> calc.py")
        assert "+mine = 1" in await diff(machine, safe)
    finally:
        await machine.close()
    for odd in ("app", "/", ""):
        with pytest.raises(SandboxError, match="absolute path"):
            await backend.own_tree(Image(name, home=odd))


def created() -> str:
    """Containers of this process that were made and never started."""
    return docker("ps", "-aq", "--filter", f"label=greengrad.owner={owner()}", "--filter", "status=created")


def archive(*members: tuple[str, bytes, str]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode, info.uid = kind, link, 0o6001, 7
            tar.addfile(info)
    out.seek(0)
    return out


def test_an_archive_of_a_repository_is_not_trusted():
    for name, kind, link in (("../x", tarfile.REGTYPE, ""), ("/x", tarfile.REGTYPE, ""), ("x", tarfile.LNKTYPE, "../../etc/passwd")):
        with pytest.raises(SandboxError, match="outside"):
            clean(archive((name, kind, link)), io.BytesIO())
    out = io.BytesIO()
    clean(
        archive(("./", tarfile.DIRTYPE, ""), ("./a", tarfile.REGTYPE, ""), ("./b", tarfile.CHRTYPE, ""), ("./c", tarfile.SYMTYPE, "/x")),
        out,
    )
    out.seek(0)
    with tarfile.open(fileobj=out) as tar:
        found = {(member.name, oct(member.mode), member.uid) for member in tar}
    assert found == {("a", "0o601", 0), ("c", "0o601", 0)}
    with pytest.raises(SandboxError, match="damaged"):
        clean(io.BytesIO(b"no archive" * 100), io.BytesIO())


@pytest.mark.bubblewrap
async def test_a_machine_made_of_the_host_brings_none_of_the_hosts_packages(image, limits):
    machine = await open_backend("bubblewrap").start(image, limits)
    try:
        found = await machine.run(
            "find /usr -name site-packages -prune -o -name __init__.py -print -o -name '*.whl' -print 2>/dev/null | grep -v /python3"
        )
        assert found.text == ""
        assert (await machine.run("git --version && python3 -c 'import json' && tar --version && perl -v")).exit_code == 0
    finally:
        await machine.close()
