"""A Docker daemon of the tests' own, to be frozen, killed and started again while the machine's own daemon goes on undisturbed."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from sandbox.images import BASE


class Daemon:
    """dockerd with its own socket, data and containerd, all below `folder`; as root."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.host = folder, f"unix://{folder}/docker.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        folder = self.folder
        folder.mkdir(exist_ok=True)
        places = [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/docker.pid", f"--host={self.host}"]
        quiet = ["--bridge=none", "--iptables=false", "--ip6tables=false", "--log-level=error", "--live-restore=false"]
        with (folder / "log").open("ab") as log:
            alone = ["unshare", "--net"]  # with --bridge=none it would remove the bridge of the machine's own daemon
            self._process = subprocess.Popen([*alone, "dockerd", *places, *quiet], stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + 60
        while subprocess.run(["docker", "-H", self.host, "version"], capture_output=True, timeout=20).returncode:
            assert time.monotonic() < end and self._process.poll() is None, (folder / "log").read_text()[-2000:]
            time.sleep(0.1)

    def copy_base(self) -> None:
        """Give it the base image of the machine's own daemon."""
        with subprocess.Popen(["docker", "save", BASE], stdout=subprocess.PIPE) as source:
            subprocess.run(["docker", "-H", self.host, "load"], stdin=source.stdout, check=True, capture_output=True, timeout=300)

    def freeze(self) -> None:
        """SIGSTOP: it accepts connections and answers nothing. Its threads stop one after the other, which is waited for."""
        assert self._process
        os.kill(self._process.pid, signal.SIGSTOP)
        end = time.monotonic() + 10
        while any(_state(thread) != "T" for thread in Path(f"/proc/{self._process.pid}/task").iterdir()):
            assert time.monotonic() < end, "the daemon does not stop"
            time.sleep(0.01)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, to its containerd too: the machine's power, as it were."""
        assert self._process
        self._process.kill()
        self._process.wait()
        subprocess.run(["pkill", "-KILL", "-f", f"containerd --config {self.folder}"], check=False)
        (self.folder / "exec/containerd/containerd.pid").unlink(missing_ok=True)  # where pid 1 buries no dead, the number lives on

    def stop(self) -> None:
        """The end: containers, daemon, containerd and files."""
        assert self._process
        if self._process.poll() is None:
            self.thaw()
            self._process.terminate()
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.kill()
        subprocess.run(["pkill", "-KILL", "-f", str(self.folder)], check=False)
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            if (place := line.split()[1]).startswith(str(self.folder)):
                subprocess.run(["umount", "--lazy", place], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def containers(self) -> list[str]:
        """Names of all its containers, running or not."""
        told = subprocess.run(["docker", "-H", self.host, "ps", "-a", "--format", "{{.Names}}"], capture_output=True, text=True, timeout=60)
        return told.stdout.split()


def _state(thread: Path) -> str:
    """Of one thread, below /proc: R, S, T ..."""
    return (thread / "stat").read_text().rpartition(")")[2].split()[0]
