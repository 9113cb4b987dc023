"""Every sentence of the Protocol, and what hostile commands try, against both backends with real machines."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox import Image, ResourceExhausted, SandboxError, open_backend
from sandbox.bubblewrap import Bubblewrap

ROOT = Path(__file__).parents[1]


async def lives(machine) -> bool:
    """The machine obeys one more command."""
    return (await machine.run("echo alive")).output == b"alive\n"


async def processes(machine) -> list[str]:
    """The command lines in the machine, but for the supervisor and this look."""
    found = await machine.run(
        "for p in /proc/[0-9]*; do [ $p = /proc/1 ] || [ $p = /proc/$$ ] || tr '\\0' ' ' < $p/cmdline; done 2>/dev/null"
    )
    return found.text.split()


def host_pids(words: str) -> list[int]:
    """The pids on this host of the processes whose command line is `words`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().replace(b"\0", b" ").strip() == words.encode():
                found.append(int(path.parent.name))
    return found


async def host_pid(words: str) -> int:
    """The one of them, once it is there."""
    for _ in range(100):
        if found := host_pids(words):
            return found[0]
        await asyncio.sleep(0.05)
    raise AssertionError(f"no process {words!r}")


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


# commands


async def test_a_command_gives_its_output_in_order_and_its_exit_code(machine):
    result = await machine.run("echo one; echo two >&2; echo three; exit 7")
    assert (result.output, result.exit_code, result.timed_out, result.dropped_bytes) == (b"one\ntwo\nthree\n", 7, False, 0)


async def test_a_command_runs_in_bash_in_workdir_as_an_ordinary_user(machine):
    assert (await machine.run('pwd; id -u; [[ x == x ]] && echo "$0"')).text == "/testbed\n1000\n/bin/bash\n"


async def test_a_killed_process_gives_128_and_its_signal(machine):
    assert (await machine.run("kill -SEGV $$")).exit_code == 139


async def test_a_program_that_is_not_there_is_the_commands_failure(machine):
    assert (await machine.run("no-such-program")).exit_code == 127


async def test_a_directory_that_is_not_there_is_the_commands_failure(machine):
    result = await machine.run("pwd", cwd="/testbed/gone")
    assert result.exit_code == 126 and "No such file" in result.text


async def test_output_that_is_not_utf8_comes_back_unchanged(machine):
    result = await machine.run(r"printf '\xff\x00\xfe\n'")
    assert result.output == b"\xff\x00\xfe\n"


async def test_stdin_reaches_the_command_whatever_its_size(machine):
    data = os.urandom(3_000_000)
    assert (await machine.run("wc -c; cat", stdin=b"")).text == "0\n"
    assert (await machine.run("sha1sum", stdin=data)).text.split()[0] == hashlib.sha1(data).hexdigest()


async def test_a_command_that_does_not_read_its_stdin_ends(machine):
    assert (await machine.run("true", stdin=b"x" * 3_000_000)).exit_code == 0


async def test_environment_and_directory_are_those_that_were_asked_for(machine):
    assert (await machine.run("echo $COLOUR; pwd", env={"COLOUR": "gr\xfcn"}, cwd="/tmp")).text == "gr\xfcn\n/tmp\n"


async def test_a_gigabyte_of_output_keeps_head_and_tail_and_tells_what_was_dropped(machine):
    result = await machine.run("echo head; yes | head -c 1000000000; echo tail")
    assert result.output.startswith(b"head\ny\n") and result.output.endswith(b"y\ntail\n")
    assert len(result.output) < 4096 + 100
    assert result.dropped_bytes == 1_000_000_010 - 4096
    assert b"[... %d bytes left out ...]" % result.dropped_bytes in result.output


@pytest.mark.parametrize("size", [4095, 4096, 4097, 6000, 8192, 10_001])
async def test_head_and_tail_are_exact_at_every_size(machine, size):
    text = b"".join(b"%07d\n" % i for i in range(size // 8 + 1))[:size]
    await machine.write("/tmp/text", text)
    result = await machine.run("cat /tmp/text")
    if size <= 4096:
        assert result.output == text
    else:
        assert result.output[:2048] == text[:2048] and result.output[-2048:] == text[-2048:]
    assert result.dropped_bytes == max(0, size - 4096)


async def test_a_command_with_a_nul_byte_or_too_long_fails_as_a_command(machine):
    assert (await machine.run("echo \0")).exit_code == 126
    assert (await machine.run("echo " + "x" * 2_000_000)).exit_code == 126
    assert (await machine.run("echo " + "x" * 500_000)).exit_code == 126
    assert await lives(machine)


# time


@pytest.mark.parametrize(
    "command",
    [
        "sleep 60",
        "trap '' TERM INT HUP; while :; do sleep 1; done",
        "exec >&- 2>&-; sleep 60",
        "setsid sleep 61 & (setsid sleep 62 &) ; (trap '' HUP; sleep 63 & disown); sleep 60",
        "yes",
    ],
    ids=["sleep", "ignores signals", "closes its output", "detaches children", "floods"],
)
async def test_at_its_time_limit_a_command_dies_with_all_its_children(machine, command):
    result = await machine.run(command, seconds=0.5)
    assert result.timed_out and result.exit_code == 124
    assert await processes(machine) == []
    assert await lives(machine)


async def test_output_before_the_time_limit_is_kept(machine):
    assert (await machine.run("echo early; sleep 60", seconds=0.5)).output == b"early\n"


async def test_a_command_ends_with_its_main_process_though_a_child_holds_its_output(machine):
    result = await machine.run("sleep 60 & echo done")
    assert result.output == b"done\n" and result.seconds < 30 and not result.timed_out


async def test_a_child_in_the_background_lives_on_until_kill_all(machine):
    await machine.run("sleep 71 &")
    assert await processes(machine) == ["sleep", "71"]
    await machine.kill_all()
    assert await processes(machine) == []


async def test_a_cancelled_command_leaves_no_process_and_the_next_one_gets_its_own_reply(machine):
    task = asyncio.create_task(machine.run("echo wrong; sleep 60", stdin=b"stale"))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await machine.run("cat; echo right")).output == b"right\n"
    assert await processes(machine) == []


async def test_commands_asked_for_at_once_run_one_after_the_other(machine):
    results = await asyncio.gather(*(machine.run(f"mkdir /tmp/lock && sleep 0.05 && rmdir /tmp/lock && echo {i}") for i in range(5)))
    assert [result.text for result in results] == [f"{i}\n" for i in range(5)]


async def test_at_the_end_of_its_life_a_machine_ends_itself_and_that_is_no_infrastructure_failure(backend, image, limits):
    machine = await backend.start(image, replace(limits, episode_seconds=2.0))
    try:
        with pytest.raises(ResourceExhausted, match="life"):
            await machine.run("sleep 60", seconds=50)
    finally:
        await machine.close()


# limits


async def test_a_fork_bomb_stops_at_the_limit_of_processes_and_the_next_command_works(machine):
    await machine.run(":(){ :|:& };:; sleep 1", seconds=5)
    assert await lives(machine)
    await machine.kill_all()
    script = "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(60)\n    else: print('child', flush=True)\n"
    await machine.write("/tmp/fork.py", script.encode())
    result = await machine.run("python3 /tmp/fork.py")
    assert "BlockingIOError" in result.text and 32 < result.text.count("child") <= 64
    assert await lives(machine)


async def test_a_memory_hog_is_told_as_out_of_memory_and_the_machine_stays_usable(machine):
    result = await machine.run("python3 -c 'x = bytearray(1 << 30)'")
    assert result.exit_code == 137 and result.out_of_memory
    after = await machine.run("echo alive")
    assert after.output == b"alive\n" and not after.out_of_memory


async def test_memory_without_an_owner_cannot_take_the_machine_down(machine):
    """Files in memory that no process maps: tmpfs is counted into the limit, the rest dies with its holders."""
    hog = "import os\nfds = [os.memfd_create('x') for _ in range(8)]\nwhile True:\n for fd in fds: os.write(fd, bytes(1 << 20))\n"
    result = await machine.run(f'python3 -c "{hog}"')
    assert result.out_of_memory
    assert "not permitted" in (await machine.run("ipcmk -M 1000000 2>&1 || echo not permitted")).text.lower()
    assert await lives(machine)


async def test_a_full_disk_is_the_agents_own_error_and_stays_its_own(machine):
    result = await machine.run(
        "for d in /testbed /tmp ~ /dev/shm; do head -c 100000000 /dev/zero > $d/big; done; du -cm /testbed/big /tmp/big ~/big /dev/shm/big"
    )
    assert result.text.count("No space left") == 4
    assert int(result.text.split()[-2]) <= 64
    with pytest.raises(ResourceExhausted, match="No space left"):
        await machine.write("/tmp/more", b"x" * 100_000)
    assert await lives(machine)


async def test_a_file_is_no_larger_than_the_disk(machine):
    assert (await machine.run("truncate -s 1G /tmp/sparse")).exit_code != 0


async def test_cpu_time_is_limited(machine):
    """Two busy loops for one second of wall clock get about one second of cpu together."""
    command = "timeout 1 bash -c 'while :; do :; done' & timeout 1 bash -c 'while :; do :; done' & wait; times"
    spent = (await machine.run(command)).text.split()[-2:]
    seconds = sum(float(part.rstrip("s").split("m")[1]) for part in spent)
    assert seconds < 1.6


@pytest.mark.bubblewrap
async def test_without_control_groups_processes_memory_and_cpus_are_limited_all_the_same(image, limits):
    """What an ordinary user gets: RLIMIT_NPROC for each machine apart, RLIMIT_AS, the affinity of the cpus."""
    backend = Bubblewrap(control_groups=False)
    one, two = await asyncio.gather(backend.start(image, limits), backend.start(image, limits))
    try:
        for machine in (one, two):
            counted = await machine.run("ulimit -u; for i in $(seq 50); do sleep 30 & done; ls -d /proc/[0-9]* | wc -l")
            assert counted.text.split()[0] == "64" and int(counted.text.split()[1]) >= 52
        assert "Resource temporarily unavailable" in (await one.run("for i in $(seq 30); do sleep 30 & done", seconds=3)).text
        assert await lives(one)
        assert "MemoryError" in (await one.run("python3 -c 'bytearray(1 << 30)'")).text
        assert (await one.run("nproc; python3 -c 'import os; os.sched_setaffinity(0, range(64))' || nproc")).text.split()[0] == "1"
    finally:
        await asyncio.gather(one.close(), two.close())


@pytest.mark.docker
async def test_an_image_with_its_own_repository_is_refused_and_not_hidden(limits):
    with pytest.raises(SandboxError, match="must be sealed before it is started"):
        await open_backend("docker").start(Image("greengrad/base:1"), limits)


# files


async def test_a_file_comes_back_as_it_was_written(machine):
    data = os.urandom(3_333_333)
    await machine.write("/testbed/deep/er/file.bin", data, 0o640)
    assert await machine.read("/testbed/deep/er/file.bin") == data
    assert (await machine.run("stat -c '%a %s %U' deep/er/file.bin")).text == "640 3333333 agent\n"


async def test_writing_replaces_the_whole_file(machine):
    await machine.write("/tmp/f", b"long content")
    await machine.write("/tmp/f", b"")
    assert await machine.read("/tmp/f") == b""


async def test_the_agents_mistakes_with_paths_are_told_as_such(machine):
    await machine.run("mkfifo /tmp/pipe; ln -s /proc/1/environ /tmp/link; ln -s loop /tmp/loop; touch /tmp/shut; chmod 0 /tmp/shut")
    for path in ("/testbed/none", "/testbed/calc.py/x", "/tmp/" + "x" * 300, "/tmp/a\0b"):
        with pytest.raises(FileNotFoundError):
            await machine.read(path)
    with pytest.raises(IsADirectoryError):
        await machine.read("/testbed")
    for path in ("/tmp/pipe", "/tmp/link", "/tmp/loop", "/tmp/shut", "/dev/zero"):
        with pytest.raises(PermissionError):
            await machine.read(path)
    for path in ("/usr/bin/evil", "/opt/env/bin/python", "/evil", "/proc/1/mem", "/tmp/pipe"):
        with pytest.raises(PermissionError):
            await machine.write(path, b"x")
    with pytest.raises(FileNotFoundError):
        await machine.write("/testbed/calc.py/x", b"x")
    assert await lives(machine)


# walls


async def test_the_supervisor_can_be_neither_killed_nor_stopped_nor_looked_at(machine):
    await machine.run("for s in $(seq 64); do kill -$s 1; done")
    await machine.run("kill -9 -1")
    assert await lives(machine)
    forged = await machine.run("echo forged > /proc/1/fd/1; ls /proc/1/fd; cat /proc/1/environ /proc/1/mem; exit 0")
    assert forged.text.count("Permission denied") == 4
    assert await lives(machine)


async def test_printing_frames_does_not_confuse_the_channel(machine):
    assert (
        await machine.run(r"printf '\x08\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00'; cat /dev/urandom | head -c 1000 | wc -c")
    ).exit_code == 0
    assert await lives(machine)


async def test_the_supervisor_cannot_be_starved_with_an_equal_uid(machine):
    script = (
        "import os, resource\n"
        "tries = [lambda: resource.prlimit(1, resource.RLIMIT_CPU, (1, 1)), lambda: os.setpriority(os.PRIO_PROCESS, 1, 19),\n"
        "         lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)), lambda: os.sched_setaffinity(1, {0})]\n"
        "for attempt in tries:\n"
        "    try: attempt()\n"
        "    except PermissionError: print('refused')\n"
    )
    await machine.write("/tmp/starve.py", script.encode())
    assert (await machine.run("python3 /tmp/starve.py")).text == "refused\n" * 4


async def test_there_are_no_privileges_to_use_or_to_gain(machine):
    status = (await machine.run("cat /proc/self/status")).text
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {fields[f"Cap{kind}"].strip("0") for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {""}
    assert fields["NoNewPrivs"] == "1" and fields["Seccomp"] == "2" and fields["Groups"].split() in ([], ["1000"])
    for command in ("unshare -U true", "unshare -n true", "mount -t tmpfs x /tmp", "chroot / true", "su -c true"):
        assert (await machine.run(command)).exit_code != 0


async def test_there_is_no_network(machine):
    assert (await machine.run("cut -d: -s -f1 /proc/net/dev | tr -d ' '")).text == "lo\n"
    for address in ("('1.1.1.1', 80)", "('169.254.169.254', 80)", "('172.17.0.1', 22)"):
        result = await machine.run(f'python3 -c "import socket; socket.create_connection({address}, 3)"')
        assert "unreachable" in result.text


LOOK = r"""
find / \( -path /proc -o -path /testbed -o -path /tmp -o -path /home/agent -o -path /dev/shm -o -path /dev/mqueue -o -path /dev/pts \) \
    -prune -o -writable ! -type l -exec test ! -c {} \; -print
"""
"""Prints every file and folder that can be written and is not meant to be."""


async def test_nothing_of_the_host_is_writable_or_tells_a_secret(machine, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "s3cr3t")
    (tmp_path / "secret").write_text("s3cr3t")
    assert "s3cr3t" not in (await machine.run(f"env; cat /proc/*/environ; cat {tmp_path}/secret; cat /etc/shadow /root/.ssh/*")).text
    assert (await machine.run("ls -A /home")).text == "agent\n"
    await machine.write("/tmp/look.sh", LOOK.encode())
    assert (await machine.run("bash /tmp/look.sh 2>/dev/null")).text == ""
    mounts = (await machine.run("awk '$4 ~ /^rw/ {print $2, $3}' /proc/mounts")).text.splitlines()
    disks = [
        line for line in mounts if line.split()[1] not in ("tmpfs", "proc", "devpts", "devtmpfs", "mqueue", "sysfs", "cgroup", "cgroup2")
    ]
    assert disks == []


async def test_the_docker_socket_is_not_there(machine):
    assert (await machine.run("ls /var/run/docker.sock /run/docker.sock /run/containerd")).exit_code == 2


async def test_the_environment_has_pytest_and_nothing_of_ours(machine):
    assert (await machine.run("pytest --version && which pytest python3")).text.split()[-2:] == [
        "/opt/env/bin/pytest",
        "/opt/env/bin/python3",
    ]
    for module in ("sandbox", "tasks", "pipeline", "numpy", "docker", "pip"):
        assert "ModuleNotFoundError" in (await machine.run(f"python3 -c 'import {module}'", cwd="/")).text
        assert (
            "ModuleNotFoundError"
            in (await machine.run(f"/usr/bin/env PATH=/usr/bin:/bin:/usr/local/bin python3 -c 'import {module}'", cwd="/")).text
        )


async def test_two_machines_do_not_see_each_other(backend, image, limits):
    one, two = await asyncio.gather(backend.start(image, limits), backend.start(image, limits))
    try:
        await one.run("sleep 72 & touch /tmp/mine /dev/shm/mine")
        assert await processes(two) == []
        assert (await two.run("ls /tmp /dev/shm")).text == "/dev/shm:\n\n/tmp:\n"
    finally:
        await asyncio.gather(one.close(), two.close())


# ends


async def test_a_machine_killed_from_outside_is_a_failure_of_the_machine(machine):
    task = asyncio.create_task(machine.run("sleep 98765.4321"))
    await asyncio.sleep(0.5)
    os.kill(parent(await host_pid("sleep 98765.4321")), signal.SIGKILL)
    with pytest.raises(SandboxError):
        await task
    with pytest.raises(SandboxError):
        await machine.run("true")


@pytest.mark.docker
async def test_a_container_removed_from_outside_is_a_failure_of_the_machine(image, limits):
    machine = await open_backend("docker").start(image, limits)
    docker("rm", "--force", machine.id)
    with pytest.raises(SandboxError):
        await machine.run("true")
    await machine.close()


async def test_close_works_twice_and_what_is_closed_does_not_run(backend, image, limits):
    machine = await backend.start(image, limits)
    task = asyncio.create_task(machine.run("sleep 98764.4321"))
    await asyncio.sleep(0.3)
    await asyncio.gather(machine.close(), machine.close())
    await machine.close()
    with pytest.raises(SandboxError):
        await task
    assert host_pids("sleep 98764.4321") == []


async def test_a_cancelled_start_leaves_nothing(backend, image, limits):
    before = traces(os.getpid())
    for delay in (0.0, 0.01, 0.05, 0.1, 0.3):
        task = asyncio.create_task(backend.start(image, limits))
        await asyncio.sleep(delay)
        task.cancel()
        try:
            await (await task).close()
        except asyncio.CancelledError:
            continue
    assert traces(os.getpid()) <= before


async def test_an_image_that_does_not_exist_is_a_failure_of_the_machine(backend, limits):
    with pytest.raises(SandboxError):
        await backend.start(Image("greengrad/env:0000000000000000"), limits)
    assert traces(os.getpid()) == set()


async def test_a_tree_that_cannot_be_unpacked_is_a_failure_of_the_machine(backend, environment, limits, tmp_path):
    (tmp_path / "bad.tar").write_bytes(b"x" * 5000)
    with pytest.raises(SandboxError, match=r"bad\.tar"):
        await backend.start(Image(environment, tmp_path / "bad.tar"), limits)


OWNER = """
import asyncio, sys
from pathlib import Path
from sandbox import Image, Limits, open_backend

async def main():
    machine = await open_backend(sys.argv[1]).start(Image(sys.argv[2], Path(sys.argv[3])), Limits())
    await machine.run("sleep 98763.4321 &")
    print("ready", flush=True)
    await asyncio.sleep(100)

asyncio.run(main())
"""


async def test_a_machine_ends_with_its_owner_and_sweep_removes_the_rest(backend, image):
    owner = start_owner(backend.name, image)
    supervisor = parent(await host_pid("sleep 98763.4321"))
    for guard in children(owner.pid, "sandbox.reaper"):
        for process in (*children(guard, "sandbox.reaper"), guard):  # the reaper first: its guard's death does not end it
            os.kill(process, signal.SIGKILL)
    owner.kill()
    owner.wait()
    await until(lambda: not runs(supervisor), "the supervisor goes on")
    assert await backend.sweep() >= 1
    assert traces(owner.pid) == set()


async def test_an_owner_that_is_killed_leaves_nothing_behind_though_nobody_sweeps(backend, image):
    owner = start_owner(backend.name, image)
    supervisor = parent(await host_pid("sleep 98763.4321"))
    (reaper,) = children(owner.pid, "sandbox.reaper")
    assert traces(owner.pid)
    owner.kill()
    owner.wait()
    await until(lambda: not runs(supervisor), "the supervisor goes on")
    await until(lambda: traces(owner.pid) == set(), "something is left")
    await until(lambda: not runs(reaper), "the reaper itself goes on")


async def until(true: Callable[[], bool], otherwise: str) -> None:
    """Wait for something, not longer than 20 seconds."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, otherwise
        await asyncio.sleep(0.05)


def children(pid: int, words: str) -> list[int]:
    """Processes whose parent is `pid` and whose command line holds these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if parent(int(path.name)) == pid and words.encode() in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


async def test_sweep_leaves_the_machines_of_the_living_alone(backend, machine):
    await backend.sweep()
    assert await lives(machine)


def start_owner(backend: str, image: Image) -> subprocess.Popen[bytes]:
    """A process that has a machine with a command in the background."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, backend, image.name, str(image.tree)], stdout=subprocess.PIPE, cwd=ROOT)
    assert owner.stdout and owner.stdout.readline() == b"ready\n"
    return owner


def runs(pid: int) -> bool:
    """True until the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def traces(pid: int) -> set[str]:
    """The containers and control groups on this host that belong to a process."""
    groups = {top for top, *_ in os.walk("/sys/fs/cgroup") if "/greengrad-" in top}  # a walk goes on where a folder vanishes under it
    containers = docker("ps", "-a", "--format", '{{.Label "greengrad.owner"}} {{.Names}}').splitlines() if shutil.which("docker") else []
    return {name for name in (*groups, *containers) if f".{pid}." in name}


def docker(*words: str) -> str:
    """The output of a docker command; empty where no daemon answers."""
    return subprocess.run(["docker", *words], capture_output=True, text=True, timeout=60, check=False).stdout
