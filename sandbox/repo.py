"""A repository in a sandbox: its tree file, its diff, its hash, a patch put onto it; knows nothing of tasks or backends.

The host runs git only in make_tree, on a trusted source. An agent's tree is looked at inside its machine, by git with a directory of
our own: the commit comes from the image's tree again, configuration and attributes are ours, so that nothing that the agent has
written (.git, hooks, filters, textconv, .gitattributes, .gitignore, nested repositories) runs or hides a change.
"""

import asyncio
import io
import os
import secrets
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from .base import WORKDIR, Image, ResourceExhausted, Sandbox, SandboxError

ATTRIBUTES = "* -text !eol !crlf !ident !filter !working-tree-encoding !diff !whitespace !merge\n"
"""info/attributes wins over every .gitattributes in the tree: bytes are compared as they are."""
CONFIG = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = false\n\tprotectNTFS = false\n"
JUNK = ("__pycache__", ".pytest_cache", ".hypothesis", ".mypy_cache", ".ruff_cache", ".tox", ".coverage", "*.egg-info", "*.pyc", "*.pyo")
"""What running tests leaves behind; never part of a diff unless the commit holds it."""
WHEN = 946_684_800
"""The time of every file and commit in a tree: 2000-01-01 UTC."""
DIFF_BYTES = 8 << 20
"""A larger diff is no patch: one of empty lines alone would take a hundred times as much of the host's memory when it is looked through."""
SECONDS = 120.0

QUIET = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_ATTR_NOSYSTEM": "1", "HOME": "/nonexistent", "LC_ALL": "C"}
GIT_PATH = "/usr/local/bin:/usr/bin:/bin"
_PREPARE = """
set -eu
mkdir "$HERE"
tar -x -C "$HERE"
rm -rf "$GIT_DIR/hooks" "$GIT_DIR/info"
mkdir "$GIT_DIR/info"
printf %s "$ATTRIBUTES" > "$GIT_DIR/info/attributes"
printf %s "$CONFIG" > "$GIT_DIR/config"
git read-tree HEAD
"""
COLLECT = f"""
set -eu
chmod -R u+rwX .
find . -mindepth 1 ! -type f ! -type d ! -type l -delete
find . -mindepth 2 -iname .git -prune -exec rm -rf {{}} +
git add -u
find . -iname .git -prune -o \\( {" -o ".join(f"-name '{name}'" for name in JUNK)} \\) -prune \\
    -o \\( -type f -o -type l \\) -printf '%P\\0' | git update-index -z --add --replace --stdin
"""
_DIFF = """git diff --cached --binary --full-index --no-renames --no-color --no-ext-diff --no-textconv \\
    --src-prefix=a/ --dst-prefix=b/ HEAD > "$HERE/diff"
"""
_EMPTY_TMP = "chmod -R u+rwX /tmp; find /tmp -mindepth 1 -delete"
_APPLY = """
again() { git reset -q --hard && git clean -fdq; }
fuzzy() {
    patch --batch --forward --unified --fuzz=5 -p1 -i "$PATCH" > "$PATCH.told" || return 1
    git apply --numstat "$PATCH" | cut -f3 | sort -u > "$PATCH.named"
    sed -n 's/^patching file //p' "$PATCH.told" | sort -u | comm -23 - "$PATCH.named" > "$PATCH.others"
    [ ! -s "$PATCH.others" ] || { again; exit 1; }
}
git apply --verbose "$PATCH" || { again; git apply --verbose --3way "$PATCH"; } || { again; git apply --verbose --reject "$PATCH"; } \\
    || { again; fuzzy; } || git apply --check --reverse "$PATCH" || { again; exit 1; }
git reset -q
"""


async def unpack(sandbox: Sandbox, image: Image) -> None:
    """Put the image's tree into WORKDIR."""
    if image.tree is None:
        return
    data = await asyncio.to_thread(image.tree.read_bytes)
    result = await sandbox.run(f"tar -x -C {WORKDIR} --no-same-owner", cwd="/", stdin=data, seconds=120)
    if result.exit_code:
        raise SandboxError(f"{image.tree}: cannot be unpacked into {WORKDIR}: {result.text[-500:].strip()}")


async def diff(sandbox: Sandbox, image: Image) -> str:
    """What the agent changed, as one patch: new files, binary files and modes included, whatever its .gitignore says.

    Ends the agent's work: kills its processes, removes its sockets and nested repositories, and empties /tmp where that is full.
    ResourceExhausted when the tree is such that no diff can be taken. A diff that is not UTF-8 comes as binary hunks, which are.
    """
    env = await _collect(sandbox, image)
    await _own_doing(sandbox, _DIFF, env)
    patch = await _read(sandbox, f"{env['HERE']}/diff")
    try:
        text = patch.decode()
    except UnicodeDecodeError:
        await sandbox.write(f"{env['GIT_DIR']}/info/attributes", ATTRIBUTES.replace("!diff", "-diff").encode())
        await _own_doing(sandbox, _DIFF, env)
        text = (await _read(sandbox, f"{env['HERE']}/diff")).decode("ascii")
    await sandbox.run('rm -rf "$HERE"', cwd="/", env=env, seconds=SECONDS)
    return text


async def tree_hash(sandbox: Sandbox, image: Image) -> str:
    """The id of the git tree that the working tree would be committed as (without junk). Ends the agent's work, as diff() does."""
    env = await _collect(sandbox, image)
    found = await _own_doing(sandbox, "git write-tree", env)
    await sandbox.run('rm -rf "$HERE"', cwd="/", env=env, seconds=SECONDS)
    return found.decode().strip()


async def apply_patch(sandbox: Sandbox, patch: str | bytes) -> bool:
    """Apply a patch to WORKDIR in the order of the official harness (git apply, --3way, --reject, patch --fuzz=5).

    As there: the first that succeeds counts, and so does a patch that stands in full although none did (it could be taken back).
    Otherwise False, and the tree is that of the commit again. patch(1) reads more as a header than git does: what it changes and
    git does not name in the same patch (a conftest.py that the caller's reading missed) makes the whole invalid.
    """
    if not patch.strip():
        return False
    path = f"/tmp/patch-{secrets.token_hex(6)}.diff"
    await sandbox.write(path, patch.encode("utf-8", "surrogateescape") if isinstance(patch, str) else patch)
    done = await sandbox.run(_APPLY, env={**QUIET, "PATH": GIT_PATH, "PATCH": path}, seconds=SECONDS)
    await sandbox.run(f"rm -f {path}*", cwd="/")
    return done.exit_code == 0


async def _collect(sandbox: Sandbox, image: Image) -> dict[str, str]:
    """Everything that lies in WORKDIR into an index of our own; returns the environment in which git sees it."""
    if image.tree is None:
        raise ValueError(f"{image.name}: an image without a tree has no base to compare with")
    here = f"/tmp/.greengrad-{secrets.token_hex(8)}"
    env = {**QUIET, "PATH": GIT_PATH, "HERE": here, "GIT_DIR": f"{here}/.git", "GIT_WORK_TREE": WORKDIR, "GIT_INDEX_FILE": f"{here}/index"}
    env |= {"ATTRIBUTES": ATTRIBUTES, "CONFIG": CONFIG}
    history = await asyncio.to_thread(_git_part, image.tree)
    await sandbox.kill_all()
    made = await sandbox.run(_PREPARE, cwd="/", env=env, stdin=history, seconds=SECONDS)
    if made.exit_code:
        await sandbox.run(_EMPTY_TMP, cwd="/", env=env, seconds=SECONDS)
        made = await sandbox.run(_PREPARE, cwd="/", env=env, stdin=history, seconds=SECONDS)
    if made.exit_code:
        raise SandboxError(f"{sandbox.id}: git cannot be set up to take the diff: {made.text[-500:].strip()}")
    await _own_doing(sandbox, COLLECT, env)
    return env


async def _own_doing(sandbox: Sandbox, script: str, env: dict[str, str]) -> bytes:
    """Run a step whose failure only the agent's tree can cause; its output."""
    done = await sandbox.run(f"set -o pipefail; {script}", env=env, seconds=SECONDS)
    if done.exit_code:
        raise ResourceExhausted(f"the diff cannot be taken (exit {done.exit_code}): {done.text[-500:].strip()}")
    return done.output


async def _read(sandbox: Sandbox, path: str) -> bytes:
    try:
        data = await sandbox.read(path)
    except PermissionError as error:
        raise ResourceExhausted(f"the diff cannot be read: {error.strerror}") from error
    if len(data) > DIFF_BYTES:
        raise ResourceExhausted(f"the diff is larger than {DIFF_BYTES >> 20} MiB")
    return data


def _git_part(tree: Path) -> bytes:
    """The members below .git of a tree file, as a tar file."""
    part = io.BytesIO()
    with tarfile.open(tree) as source, tarfile.open(fileobj=part, mode="w") as target:
        for member in source:
            if member.name == ".git" or member.name.startswith(".git/"):
                target.addfile(member, source.extractfile(member) if member.isreg() else None)
    return part.getvalue()


def make_tree(folder: Path, out: Path) -> str:
    """Write `folder` (a trusted source) as a tree file with a history of one commit; returns the commit's id.

    Equal folders give equal ids, and equal bytes with the same git. A .git in the folder and compiled files are left out.
    """
    with tempfile.TemporaryDirectory() as temp:
        work = Path(temp) / "tree"
        shutil.copytree(folder, work, symlinks=True, ignore=shutil.ignore_patterns(".git", "__pycache__", "*.pyc"))
        commit = _commit(work)
        draft = out.with_name(f".{out.name}-{secrets.token_hex(4)}")
        try:
            pack(work, draft)
            draft.rename(out)
        finally:
            draft.unlink(missing_ok=True)
    return commit


def _commit(work: Path) -> str:
    """One commit of everything, packed; no index stat data, no hooks, no log: nothing that differs from run to run."""
    git(work, "init", "--quiet", "--template=", "--initial-branch=main")
    (work / ".git" / "config").write_text(CONFIG)
    (work / ".git" / "info").mkdir()
    (work / ".git" / "info" / "attributes").write_text(ATTRIBUTES)
    git(work, "add", "--all", "--force")
    git(work, "commit", "--quiet", "--allow-empty", "--no-verify", "--message", "base")
    git(work, "-c", "pack.threads=1", "repack", "-adq")
    (work / ".git" / "index").unlink()
    git(work, "read-tree", "HEAD")
    (work / ".git" / "COMMIT_EDITMSG").unlink(missing_ok=True)
    return git(work, "rev-parse", "HEAD")


def git(work: Path, *arguments: str) -> str:
    """Run git in a folder of ours, with nothing of this machine's configuration; what it printed (SandboxError where it fails)."""
    who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in (("NAME", "greengrad"), ("EMAIL", "none"))}
    when = {"GIT_AUTHOR_DATE": f"{WHEN} +0000", "GIT_COMMITTER_DATE": f"{WHEN} +0000"}
    env = {**QUIET, "PATH": os.environ.get("PATH", os.defpath), **who, **when}
    done = subprocess.run(["git", *arguments], cwd=work, env=env, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise SandboxError(f"git {arguments[0]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout.strip()


def pack(work: Path, out: Path) -> None:
    """All of `work`, in order of name, with owner, time and modes made equal."""
    with tarfile.open(out, "w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(work.rglob("*")):
            info = tar.gettarinfo(path, str(path.relative_to(work)))
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mtime = WHEN
            info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
            if info.isreg():
                with path.open("rb") as file:
                    tar.addfile(info, file)
            else:
                tar.addfile(info)
