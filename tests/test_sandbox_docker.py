"""The Docker backend against daemons that fail: one that freezes, one that forbids, none at all."""

import json
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler

import pytest

from sandbox import Limits, SandboxError, open_backend
from sandbox import docker as docker_module

ANSWERS = {"_ping": "OK", "version": json.dumps({"ApiVersion": "1.41"}), "info": json.dumps({"NCPU": 2})}


class Freezing(BaseHTTPRequestHandler):
    """Answers what is asked at the beginning, then nothing any more."""

    def do_GET(self) -> None:
        answer = ANSWERS.get(self.path.rpartition("/")[2])
        if answer is None:
            time.sleep(3)
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())

    do_POST = do_DELETE = do_GET

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *words: object) -> None:
        """Nothing."""


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@pytest.fixture
def frozen_daemon(tmp_path, monkeypatch):
    path = str(tmp_path / "docker.sock")
    with Server(path, Freezing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        yield
        server.shutdown()


async def test_a_frozen_daemon_fails_every_call_in_bounded_time(frozen_daemon, monkeypatch, image):
    monkeypatch.setattr(docker_module, "CALL_SECONDS", 1)
    backend = open_backend("docker")
    with pytest.raises(SandboxError, match="Docker"):
        await backend.start(image, Limits())
    with pytest.raises(SandboxError, match="Docker"):
        await backend.sweep()


def test_no_daemon_is_told_in_one_line_and_auto_goes_on_without_it(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(SandboxError, match="no Docker daemon answers") as told:
        open_backend("docker")
    assert "\n" not in str(told.value)


@pytest.mark.bubblewrap
def test_auto_takes_bubblewrap_where_no_daemon_answers(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    assert open_backend("auto").name == "bubblewrap"


@pytest.mark.docker
def test_auto_takes_docker_where_a_daemon_answers():
    assert open_backend("auto").name == "docker"


def test_nothing_that_works_is_told_with_the_reason_for_each(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SandboxError, match=r"docker: .*; bubblewrap: bwrap not found"):
        open_backend("auto")


def test_an_unknown_backend_is_the_callers_mistake():
    with pytest.raises(ValueError, match="auto, docker or bubblewrap"):
        open_backend("podman")


def test_a_socket_without_permission_is_told_as_such():
    told = docker_module._why_not(PermissionError(13, "Permission denied"))
    assert "group docker" in told
