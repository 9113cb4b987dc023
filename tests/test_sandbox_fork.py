"""A fork: the files of one machine in another, equal at that moment and independent afterwards."""

import asyncio

import pytest

from sandbox import Image, Pool, ResourceExhausted, SandboxError, diff, tree_hash
from sandbox.machine import PLACES

LISTING = f"find {' '.join(PLACES)} -mindepth 1 -type f -printf '%p %M %T@ %n ' -exec md5sum {{}} \\; -o -printf '%p %M %T@ %l\\n' | sort"
WORK = """
echo 'x = 2' >> calc.py; rm run.sh; mkdir -p new/deep; printf 'a\\0b' > new/deep/binary; ln -s ../calc.py new/link; ln calc.py hard
chmod 600 data.bin; chmod 700 new; touch -d 2001-02-03 data.bin; echo note > /tmp/note; echo rc > ~/.rc; echo shm > /dev/shm/x
git add -A; printf 'x%.0s' {1..200} > "$(printf 'n%.0s' {1..120})"; truncate -s 20M sparse; mkfifo pipe; touch 'new
line'
"""


async def test_a_fork_has_every_file_and_goes_its_own_way(backend, image, limits):
    async with Pool(backend, limits, concurrency=2) as pool, pool.lease(image) as one:
        await one.run(WORK)
        async with pool.lease(image, like=one) as two:
            assert one.id != two.id
            assert (await two.run(LISTING, cwd="/")).text == (await one.run(LISTING, cwd="/")).text
            assert await diff(two, image) == await diff(one, image) != ""
            await two.run("echo two > /tmp/note; echo 'y = 3' >> calc.py; rm -rf new")
            assert (await one.run("cat /tmp/note; ls -d new; grep -c y calc.py")).text == "note\nnew\n0\n"
            assert await tree_hash(two, image) != await tree_hash(one, image)


async def test_forks_of_one_machine_at_once_are_all_equal(backend, image, limits):
    async with Pool(backend, limits, concurrency=4, ahead=1, reuse=4) as pool, pool.lease(image) as one:
        await one.run(WORK)
        hashes = [await tree_hash(one, image)]

        async def fork() -> None:
            async with pool.lease(image, like=one) as machine:
                hashes.append(await tree_hash(machine, image))

        await asyncio.gather(*(fork() for _ in range(5)))
        assert len(hashes) == 6 and len(set(hashes)) == 1


async def test_what_cannot_be_read_by_its_owner_is_copied_too(backend, image, limits):
    async with Pool(backend, limits, concurrency=2) as pool, pool.lease(image) as one:
        await one.run("chmod 000 calc.py; mkdir shut; echo x > shut/x; chmod 000 shut")
        async with pool.lease(image, like=one) as two:
            assert (await two.run("cat calc.py shut/x | wc -l")).text == "3\n"


async def test_a_fork_of_a_machine_that_died_is_a_failure_and_frees_its_place(backend, image, limits):
    async with Pool(backend, limits, concurrency=2) as pool:
        async with pool.lease(image) as one:
            await one.close()
            for _ in range(2):
                with pytest.raises((SandboxError, ResourceExhausted)):
                    async with pool.lease(image, like=one):
                        raise AssertionError("there is nothing to fork")
        async with pool.lease(image) as two:
            assert (await two.run("true")).exit_code == 0


async def test_a_target_that_fails_leaves_the_source_usable(backend, image, limits):
    async with Pool(backend, limits, concurrency=2) as pool, pool.lease(image) as one:
        target = await backend.start(Image(image.name), limits)
        await target.close()
        with pytest.raises((SandboxError, ResourceExhausted)):
            await target.copy_from(one)
        assert (await one.run("cat calc.py")).exit_code == 0
