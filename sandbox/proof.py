"""Is the answer out of reach? The proof that a machine holds no more than the base commit and no trace of a secret; knows no tasks.

Everything runs inside the machine. A repository's .git is first compared on the host, name by name and its settings byte by byte; git
runs in it only when nothing but a sealed history lies there, so no configuration, hook or filter of it ever acts. What is found is told
by kind and place, never by its text, which would be the answer.

covered:     .git: its files by name; config, attributes, HEAD, shallow by content; one branch, whose commits are the base and at most
             our baseline upon it; the packs' objects, each hashed anew, are those that this branch reaches, and no others.
             Its other files are searched like those of the working tree; so is the base commit's message.
             The working tree: no difference to HEAD, no nested repository, none of the files that the test patch adds.
             Traces of gold and test patch (traces.py) that the base commit does not hold itself: nowhere in the working tree, nor in any
             file or archive that can be read in the machine (look.py); nothing at all in a cache of pip.
not covered: what look.py does not cover; a fix that was rewritten in other words, or another version of the package whose lines around
             the fix differ; what uid 1000 cannot read, because an agent cannot either; what a model remembers.
"""

import inspect
import json
import re
from collections.abc import Sequence

from . import look
from .base import WORKDIR
from .desk import Desk, SealError, read
from .repo import ATTRIBUTES, COLLECT, CONFIG
from .traces import Secret, Traces, find_traces

ELSEWHERE = ("/proc", "/sys", "/dev", WORKDIR)
"""Not looked at in a search of the machine; /dev/shm is empty in a new one."""
SEALED_NAMES = re.compile(
    r"HEAD|config|index|shallow|info/attributes|info/refs|refs/heads/main|objects/info/packs|objects/pack/pack-[0-9a-f]{40}\.(pack|idx|rev)"
)
"""Files of a sealed .git."""
_NAMES = """
[ -d .git ] && [ ! -L .git ] || { echo 'no .git folder'; exit 1; }
find . -mindepth 2 -iname .git -printf 'a nested repository: %P\\n' -quit > "$HERE/nested"
[ ! -s "$HERE/nested" ] || { cat "$HERE/nested"; exit 1; }
find .git -mindepth 1 ! -type d -printf '%y %P\\0' > "$HERE/names"
"""
_HISTORY = """
export GIT_DIR="$PWD/.git"
for pack in .git/objects/pack/*.pack; do
    git index-pack -o "$HERE/check.idx" "$pack" > /dev/null
    cmp "$HERE/check.idx" "${pack%.pack}.idx"
    rm -f "$HERE"/check.*
done
git rev-list --all --parents > "$HERE/commits"
git rev-list --objects --no-object-names --all | LC_ALL=C sort > "$HERE/reached"
git cat-file --batch-all-objects --batch-check='%(objectname)' | LC_ALL=C sort | comm -3 - "$HERE/reached" > "$HERE/unreached"
[ ! -s "$HERE/unreached" ] || { echo "unreached or missing objects: $(head -n 1 "$HERE/unreached")"; exit 1; }
git diff-index --cached --quiet HEAD || { echo 'its index is not that of HEAD'; exit 1; }
"""
_TREE = f"""
export GIT_DIR="$PWD/.git" GIT_WORK_TREE="$PWD" GIT_INDEX_FILE="$HERE/index" GIT_OBJECT_DIRECTORY="$HERE/objects"
export GIT_ALTERNATE_OBJECT_DIRECTORIES="$PWD/.git/objects"
mkdir -p "$GIT_OBJECT_DIRECTORY"
git read-tree HEAD
{COLLECT}
[ "$(git write-tree)" = "$(git rev-parse 'HEAD^{{tree}}')" ] || {{ git diff --cached --name-only HEAD | head -n 3; exit 1; }}
"""
_LOOK = """
for python in /usr/bin/python3 /usr/local/bin/python3 /opt/env/bin/python3 /opt/*/bin/python3; do [ ! -x "$python" ] || break; done
"$python" -I -S -B "$HERE/look.py" "$HERE/query" "$HERE/answer"
"""
Found = Sequence[tuple[int | str, str]]
"""What (the number of a passage, git's id of a file, PIP_CACHE) and where."""


async def prove_tree(desk: Desk, secret: Secret) -> Traces:
    """Show that WORKDIR holds the base commit alone and no trace of the secret; returns the traces, to be looked for elsewhere."""
    await desk.run(_NAMES, f"{WORKDIR} is no sealed repository")
    await _check_settings(desk, secret.base_commit)
    await desk.run(_HISTORY, ".git is not sealed")
    head = _check_commits((await desk.read("commits")).decode(), secret.base_commit)
    if await read(desk.sandbox, f"{WORKDIR}/.git/info/refs") not in (b"", f"{head}\trefs/heads/main\n".encode()):
        raise SealError(".git is not sealed: info/refs names other commits")
    await desk.run(_TREE, "the working tree is not that of HEAD")
    traces = await find_traces(desk, secret, dict.fromkeys((head, secret.base_commit)))
    if there := [path for path in traces.added if await _exists(desk, path)]:
        raise SealError(f"{WORKDIR} holds hidden tests: {', '.join(there[:3])}")
    known, found = await _look(desk, traces, secret.base_commit, [WORKDIR], [f"{WORKDIR}/.git/objects/pack"])
    if left := [(what, place) for what, place in found if what not in known]:
        raise SealError(f"{WORKDIR} holds the answer: {_told(left)}")
    return traces.without(known)


async def search(desk: Desk, wanted: Sequence[Traces]) -> list[str]:
    """Look everywhere but in WORKDIR, for many secrets in one go. For each of them: what was found and where, or "" for nothing."""
    blobs = dict.fromkeys(blob for traces in wanted for blob in traces.blobs)
    passages = list(dict.fromkeys(text for traces in wanted for text in traces.passages))
    _, found = await _look(desk, Traces(tuple(blobs), tuple(passages), ()), "", ["/"], [*ELSEWHERE, desk.here])
    places = [(passages[what] if isinstance(what, int) else what, what, place) for what, place in found]
    answers = []
    for traces in wanted:
        own = {look.PIP_CACHE, *traces.passages, *(blob[0] for blob in traces.blobs)}
        hits = [(what, place) for key, what, place in places if key in own]
        answers.append(f"the machine holds the answer: {_told(hits)}" if hits else "")
    return answers


async def _check_settings(desk: Desk, base: str) -> None:
    """The files of .git are those of a sealed one, and what git would obey is ours."""
    for entry in (await desk.read("names")).decode("utf-8", "backslashreplace").split("\0")[:-1]:
        kind, _, name = entry.partition(" ")
        if kind != "f" or not SEALED_NAMES.fullmatch(name):
            raise SealError(f".git is not sealed: it holds {name}")
    ours = {"config": CONFIG, "info/attributes": ATTRIBUTES, "HEAD": "ref: refs/heads/main\n", "shallow": f"{base}\n"}
    names = {entry[2:] for entry in (await desk.read("names")).decode("utf-8", "backslashreplace").split("\0")}
    for name, text in ours.items():
        if (name in names or name != "shallow") and await read(desk.sandbox, f"{WORKDIR}/.git/{name}") != text.encode():
            raise SealError(f".git is not sealed: {name} is not as we write it")


def _check_commits(listed: str, base: str) -> str:
    """The commits are the base, without parents, and at most one upon it; returns HEAD's id. `listed`: git rev-list --all --parents."""
    commits = [line.split() for line in listed.splitlines()]
    if commits == [[base]]:
        return base
    if len(commits) == 2 and commits[0][1:] == [base] and commits[1] == [base]:
        return commits[0][0]
    raise SealError(f".git is not sealed: {len(commits)} commits, where the base commit {base} alone is wanted")


async def _exists(desk: Desk, path: str) -> bool:
    """Whether a file, or a link, lies in the working tree."""
    done = await desk.sandbox.run('[ -e "$FILE" ] || [ -L "$FILE" ]', env={"FILE": f"./{path}"})
    return done.exit_code == 0


async def _look(desk: Desk, traces: Traces, commit: str, roots: list[str], skip: list[str]) -> tuple[set[int | str], Found]:
    """Run look.py: what of the traces the commit holds itself, and what was found below the roots."""
    query = {"roots": roots, "skip": skip, "commit": commit, "passages": traces.passages, "blobs": traces.blobs}
    await desk.write("look.py", inspect.getsource(look).encode())
    await desk.write("query", json.dumps(query).encode())
    await desk.run(_LOOK, "nothing could be looked for; python3 >= 3.8 and git are needed in the image")
    answer = json.loads(await desk.read("answer"))
    return set(answer["known"]), [(what, place) for what, place in answer["found"]]


def _told(found: Found) -> str:
    """Kind and place of what was found."""
    kinds = {look.PIP_CACHE: "a file"}
    words = [(kinds.get(str(what), "a file of the fix") if isinstance(what, str) else "lines of the fix", place) for what, place in found]
    lines = list(dict.fromkeys(f"{kind} in {place}" for kind, place in words))
    return "; ".join(lines[:4]) + (f" and {len(lines) - 4} more" if len(lines) > 4 else "")
