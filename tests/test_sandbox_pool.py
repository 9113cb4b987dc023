"""The pool of machines, on fakes."""

import asyncio
from pathlib import Path

import pytest

from sandbox import DyingSandbox, FakeBackend, FakeSandbox, HangingSandbox, Image, Limits, Pool, ResourceExhausted, SandboxError, diff

LIMITS = Limits()
IMAGE = Image("greengrad/env:1")


class SlowBackend(FakeBackend):
    """Its machines take a moment to start; counts those that are open, at most."""

    most = 0

    async def start(self, image: Image, limits: Limits):
        await asyncio.sleep(0.01)
        machine = await super().start(image, limits)
        self.most = max(self.most, sum(not other.closed for other in self.started))
        return machine


class BrokenBackend(FakeBackend):
    """Never starts anything."""

    async def start(self, image: Image, limits: Limits):
        raise SandboxError("no room")


class Unwashable(FakeSandbox):
    """What was written in it stays."""

    async def wipe(self) -> None:
        raise SandboxError("cannot be wiped")


@pytest.fixture
def tree(tmp_path: Path) -> Image:
    (tmp_path / "tree.tar").write_bytes(b"")
    return Image("greengrad/env:1", tmp_path / "tree.tar")


async def use(pool: Pool, image: Image = IMAGE) -> None:
    async with pool.lease(image) as machine:
        await machine.run("true")
        await asyncio.sleep(0.01)


async def test_no_more_machines_are_open_than_was_said():
    backend = SlowBackend()
    async with Pool(backend, LIMITS, concurrency=3) as pool:
        await asyncio.gather(*(use(pool) for _ in range(12)))
    assert backend.most == 3 and len(backend.started) == 12 and all(machine.closed for machine in backend.started)


async def test_each_lease_gets_a_machine_that_nobody_had_before(tree):
    backend = FakeBackend()
    async with Pool(backend, LIMITS, concurrency=1, ahead=2) as pool:
        for _ in range(4):
            async with pool.lease(tree) as machine:
                assert machine.commands == []
                await machine.run("used")
    assert all(machine.closed for machine in backend.started)


class LateBackend(FakeBackend):
    """Reads the tree only after a moment, as a real start does."""

    async def start(self, image: Image, limits: Limits):
        await asyncio.sleep(0.02)
        if image.tree and not image.tree.exists():
            raise FileNotFoundError(image.tree)
        return await super().start(image, limits)


async def test_a_tree_that_goes_away_while_a_machine_starts_ahead_for_it_harms_no_other_lease(tree, tmp_path: Path):
    (tmp_path / "other.tar").write_bytes(b"")
    other = Image(tree.name, tmp_path / "other.tar")
    async with Pool(LateBackend(), LIMITS, concurrency=2, ahead=1) as pool:
        await use(pool, tree)  # one more was begun ahead, and is still starting
        async with pool.lease(tree):
            assert tree.tree
            tree.tree.unlink()
            async with pool.lease(other) as machine:
                assert (await machine.run("true")).exit_code == 0


async def test_machines_started_ahead_are_bounded_and_end_with_the_pool(tree):
    backend = FakeBackend()
    async with Pool(backend, LIMITS, concurrency=2, ahead=3) as pool:
        for i in range(6):
            await use(pool, Image(f"greengrad/env:{i}", tree.tree))
        await asyncio.sleep(0.01)  # the last teardown runs in the background
        assert sum(not machine.closed for machine in backend.started) <= 4 * 3
    assert all(machine.closed for machine in backend.started)


class Hanging(FakeBackend):
    """Its first machine starts, the others hang in their start for two minutes."""

    async def start(self, image: Image, limits: Limits):
        machine = await super().start(image, limits)
        if len(self.started) > 1:
            try:
                await asyncio.sleep(120)
            finally:
                await machine.close()
        return machine


async def test_a_pool_closes_though_a_machine_that_starts_ahead_hangs(tree):
    backend = Hanging()
    async with asyncio.timeout(10):
        async with Pool(backend, LIMITS, concurrency=1, ahead=2) as pool:
            await use(pool, tree)
            await asyncio.sleep(0)
    assert len(backend.started) == 3 and all(machine.closed for machine in backend.started)


async def test_a_machine_that_has_waited_too_long_is_not_handed_out(tree):
    backend = FakeBackend()
    async with Pool(backend, Limits(episode_seconds=0.2), concurrency=1, ahead=1) as pool:
        await use(pool, tree)
        old = backend.started[-1]
        await asyncio.sleep(0.1)
        async with pool.lease(tree) as machine:
            assert machine is not old and old.closed


async def test_a_machine_that_serves_again_is_wiped_and_no_more_are_open_than_was_said(tree):
    backend = SlowBackend()
    async with Pool(backend, LIMITS, concurrency=2, ahead=1, reuse=3) as pool:
        for _ in range(3):
            await asyncio.gather(*(use(pool, tree) for _ in range(6)))
    assert backend.most <= 3 and 6 <= len(backend.started) <= 8
    assert any(machine.commands.count("true") == 3 for machine in backend.started)
    assert all(machine.commands.count("true") <= 3 and machine.closed for machine in backend.started)


async def test_a_tree_that_is_deleted_after_its_lease_harms_nothing(tree, tmp_path):
    backend = FakeBackend()
    (tmp_path / "other.tar").write_bytes(b"")
    async with Pool(backend, LIMITS, concurrency=1, reuse=3) as pool:
        await use(pool, Image(tree.name, tmp_path / "other.tar"))
        (tmp_path / "other.tar").unlink()
        for _ in range(2):
            await use(pool, tree)
    assert len(backend.started) == 1 and all(machine.closed for machine in backend.started)


async def test_a_machine_that_cannot_be_wiped_is_torn_down_and_the_next_lease_gets_another(tree):
    backend = FakeBackend(Unwashable)
    async with Pool(backend, LIMITS, concurrency=1, reuse=8) as pool:
        for _ in range(3):
            await use(pool, tree)
    assert len(backend.started) == 3 and all(machine.closed for machine in backend.started)


async def test_an_error_or_cancellation_inside_still_tears_down():
    backend = FakeBackend(HangingSandbox)
    async with Pool(backend, LIMITS, concurrency=1) as pool:
        with pytest.raises(ZeroDivisionError):
            async with pool.lease(IMAGE):
                raise ZeroDivisionError
        task = asyncio.create_task(use(pool))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(backend.started) == 2 and all(machine.closed for machine in backend.started)


async def test_cancelling_while_a_machine_starts_leaves_none_open():
    backend = SlowBackend()
    async with Pool(backend, LIMITS, concurrency=1) as pool:
        task = asyncio.create_task(use(pool))
        await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(backend.started) == 1 and backend.started[0].closed


async def test_a_failed_start_frees_its_place(tree):
    for ahead, image in ((0, IMAGE), (2, tree)):
        async with Pool(BrokenBackend(), LIMITS, concurrency=1, ahead=ahead) as pool:
            for _ in range(3):
                with pytest.raises(SandboxError, match="no room"):
                    await use(pool, image)


async def test_a_dying_fake_dies_when_it_was_told_to_and_stays_dead():
    machine = DyingSandbox(2, ResourceExhausted("full"))
    await machine.run("one")
    await machine.write("/x", b"two")
    for _ in range(2):
        with pytest.raises(ResourceExhausted):
            await machine.run("three")


async def test_a_fake_answers_from_its_script_and_keeps_files():
    machine = FakeSandbox({"pytest": b"1 passed", "crash": SandboxError("gone")}, {"/testbed/a": b"x"})
    assert (await machine.run("cd /testbed && pytest -q")).output == b"1 passed"
    assert (await machine.run("ls")).exit_code == 0
    with pytest.raises(SandboxError):
        await machine.run("crash now")
    with pytest.raises(FileNotFoundError):
        await machine.read("/testbed/b")
    await machine.close()
    with pytest.raises(SandboxError):
        await machine.run("ls")


async def test_a_hanging_fake_hangs():
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(HangingSandbox().run("true"), 0.05)


async def test_a_dying_machine_during_the_diff_is_a_failure_of_the_machine(tmp_path):
    from sandbox import make_tree

    (tmp_path / "source").mkdir()
    make_tree(tmp_path / "source", tmp_path / "tree.tar")
    for left in range(4):
        with pytest.raises(SandboxError):
            await diff(DyingSandbox(left), Image("greengrad/env:1", tmp_path / "tree.tar"))
