"""Statements in a model's words: a server that tells too much, one that fails, one that will do; against a real HTTP server."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.rewrite import rewrite_statements, rewriting
from pipeline.types import PolicyError
from tasks import load_suite, toy_suite
from tasks.lineage import append, entries


@contextmanager
def serving(answers: dict[str, list[str]]) -> Iterator[str]:
    """A server that answers by the first key that stands in the question, one answer after the other; "" is an error of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"][-1]["content"]
            text = next(texts for key, texts in answers.items() if key in asked).pop(0)
            found = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
            data = json.dumps(found).encode()
            self.send_response(200 if text else 400)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def rewrite(suite: Path, url: str):
    return asyncio.run(rewrite_statements(suite, rewriting(suite, url, "it")))


def statements(suite: Path) -> dict[str, str]:
    return {task.instance_id.rpartition("-")[2]: task.problem_statement for task in load_suite(suite).tasks}


def test_a_model_may_rewrite_but_never_tell_the_fix_a_file_or_a_function(tmp_path):
    suite = tmp_path / "suite"
    tasks = {task.instance_id.rpartition("-")[2]: task for task in toy_suite(suite).tasks}
    old = statements(suite)
    fix = next(line[1:] for line in tasks["add"].gold_patch.splitlines() if line.startswith("+") and not line.startswith("+++"))
    append(suite, {"step": "build", "instance_id": tasks["clamp"].instance_id, "function": "Inner.secret_place"})
    first, second, third = (old[name] for name in ("add", "clamp", "words"))
    answers = {first: [f"Write {fix.strip()} there", "Sums are wrong."], second: ["See secret_place."] * 2, third: ["x" * 5000, " "]}
    with serving(answers) as url:
        counts = rewrite(suite, url)
    assert counts == {"": 1, "it names secret_place": 1, "it is empty or longer than 2500 characters": 1}
    assert statements(suite) == old | {"add": "Sums are wrong.\n"}
    told = {entry["instance_id"]: entry for entry in entries(suite) if entry["step"] == "restate"}
    assert told[tasks["add"].instance_id]["statement"] == first, "the old one is not lost"


def test_a_failing_server_is_no_fallback_and_the_same_call_goes_on(tmp_path):
    suite = tmp_path / "suite"
    toy_suite(suite)
    old = statements(suite)
    with serving({text: [""] * 9 for text in old.values()}) as url, pytest.raises(PolicyError, match="400"):
        rewrite(suite, url)
    assert statements(suite) == old
    with serving({text: [f"Report {name}."] for name, text in old.items()}) as url:
        assert rewrite(suite, url) == {"": 3}
    with serving({}) as url:
        assert rewrite(suite, url) == {"": 3}, "nothing is asked twice"
    assert statements(suite) == {name: f"Report {name}.\n" for name in old}
