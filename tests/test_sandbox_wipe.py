"""A machine that is wiped between two leases is as new: nothing of the first agent reaches the second."""

import asyncio
from pathlib import Path

import pytest

from sandbox import Image, Pool, SandboxError, diff
from sandbox.machine import PLACES
from sandbox.repo import unpack

LISTING = f"find {' '.join(PLACES)} -printf '%p %M %U %G %s %l\\n' | sort; ls -A /dev/mqueue 2>/dev/null"
MESS = """
echo secret > note; echo secret > /tmp/note; echo secret > ~/.bashrc; echo secret > /dev/shm/note; rm -rf calc.py .git
mkdir -p "/tmp/$(printf 'a/%.0s' {1..200})" ~/.local/lib /tmp/locked/inner; touch /tmp/locked/inner/x "/tmp/new
line" /tmp/-rf; chmod 000 /tmp/locked/inner /tmp/locked; ln -s / /tmp/root; ln -s /proc/self /testbed/self
mkfifo /tmp/pipe; ln note hard; chmod 4777 note
(setsid sleep 300 &) ; (trap '' TERM; while :; do touch /tmp/again; done) > /dev/null 2>&1 &
"""
LAST = "chmod 000 /testbed /tmp ~ /dev/shm; touch -d 1999-01-01 /testbed 2>/dev/null; true"
TRACES = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def tell(name, result):
    print(name, "refused" if result == -1 else "DONE", os.strerror(ctypes.get_errno()))
tell("shm", libc.shmget(77, 4096, 0o1666))
tell("msg", libc.msgget(77, 0o1666))
tell("sem", libc.semget(77, 1, 0o1666))
tell("key", libc.syscall(248, b"user", b"name", b"secret", 6, -4))
try:
    rt = ctypes.CDLL("librt.so.1", use_errno=True)
    tell("mq", rt.mq_open(b"/name", os.O_CREAT | os.O_RDWR, 0o666, None))
except AttributeError:
    print("mq refused: no such function")
for follow in (True, False):
    try:
        os.setxattr("/testbed", "user.note", b"secret", follow_symlinks=follow)
        print("xattr DONE")
    except OSError as error:
        print("xattr refused", error.strerror)
"""


async def test_what_an_agent_left_is_gone_after_a_wipe(backend, image, limits):
    machine = await backend.start(image, limits)
    try:
        new = (await machine.run(LISTING, cwd="/")).text
        await machine.run(MESS)
        await machine.run(LAST, cwd="/")
        await machine.wipe()
        assert set((await machine.run("exec cat /proc/[0-9]*/comm", cwd="/")).text.split()) == {".supervisor", "cat"}
        await unpack(machine, image)
        assert (await machine.run(LISTING, cwd="/")).text == new
        assert await diff(machine, image) == ""
    finally:
        await machine.close()


async def test_what_is_no_file_cannot_be_left_at_all(machine):
    await machine.write("/tmp/traces.py", TRACES.encode())
    told = (await machine.run("python3 /tmp/traces.py")).text
    assert told.count("refused") == 7 and "DONE" not in told, told


async def test_a_wiped_machine_lives_its_whole_life_again(backend, image, limits):
    from dataclasses import replace

    machine = await backend.start(image, replace(limits, episode_seconds=3.0))
    try:
        for _ in range(3):
            await asyncio.sleep(1.5)
            await machine.wipe()
        assert (await machine.run("echo alive", cwd="/")).text == "alive\n"
    finally:
        await machine.close()


async def test_a_full_disk_and_many_files_are_wiped_too(machine, image):
    await machine.run("yes > /testbed/full; mkdir /tmp/many; cd /tmp/many; seq 3000 | xargs touch")
    await machine.wipe()
    await unpack(machine, image)
    assert (await machine.run("ls calc.py && ls /tmp | wc -l")).text == "calc.py\n0\n"


async def test_a_pool_hands_the_wiped_machine_out_again_and_the_tree_is_whole(backend, image, limits):
    async with Pool(backend, limits, concurrency=1, reuse=3) as pool:
        names = []
        for number in range(4):
            async with pool.lease(image) as machine:
                names.append(machine.id)
                assert await diff(machine, image) == ""
                assert (await machine.run("cat /tmp/note ~/note; python3 -c 'import calc; print(calc.add(1, 2))'")).text.endswith("-1\n")
                await machine.run(f"echo {number} | tee /tmp/note ~/note > calc.py")
    assert names[0] == names[1] == names[2] != names[3]


async def test_another_tree_replaces_the_one_that_was_expected(backend, image, limits, environment, tmp_path: Path):
    from sandbox import make_tree

    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "other.py").write_text("x = 1\n")
    make_tree(tmp_path / "source", tmp_path / "tree.tar")
    other = Image(environment, tmp_path / "tree.tar")
    async with Pool(backend, limits, concurrency=1, ahead=1, reuse=8) as pool:
        for one, file in ((image, "calc.py"), (other, "other.py"), (image, "calc.py")):
            async with pool.lease(one) as machine:
                assert file in (await machine.run("ls")).text.split()
                assert await diff(machine, one) == ""


async def test_a_machine_that_died_or_whose_lease_failed_is_not_used_again(backend, image, limits):
    async with Pool(backend, limits, concurrency=1, reuse=8) as pool:
        async with pool.lease(image) as first:
            await first.close()
        with pytest.raises(ZeroDivisionError):
            async with pool.lease(image) as second:
                raise ZeroDivisionError
        async with pool.lease(image) as third:
            assert len({first.id, second.id, third.id}) == 3
            assert (await third.run("true")).exit_code == 0
    with pytest.raises(SandboxError):
        await third.run("true")
