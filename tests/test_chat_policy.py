"""Any OpenAI-compatible server as a policy: against a server that misbehaves in every way, and against the real vLLM."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.chat_policy import ChatPolicy, start_chat, start_chat_policy
from pipeline.cli import main
from pipeline.config import Config, PolicyConfig
from pipeline.engine import engine_command, free_port, start_engine
from pipeline.journal import Journal
from pipeline.prompt import ByteTemplate
from pipeline.results import load_results
from pipeline.types import ContextFull, PolicyError, Stop
from tasks import toy_suite

TEMPLATE = ByteTemplate()
PROMPT = [*TEMPLATE.start("Be good.", "Fix it."), *TEMPLATE.encode("ls"), *TEMPLATE.reply("a.py")]
Reply = tuple[int, dict[str, str], object]


def answer(text: str = "hello", **more: object) -> Reply:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | more
    return 200, {}, {"choices": [choice], "usage": {"prompt_tokens": 11, "completion_tokens": 3}}


@contextmanager
def serving(reply: Callable[[dict], Reply]) -> Iterator[tuple[str, list[dict]]]:
    """A real HTTP server whose answers a function chooses; its URL, and what it was asked."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append({"path": self.path, "key": self.headers["authorization"], "at": time.monotonic(), **body})
            self.send(*reply(body))

        def do_GET(self) -> None:
            self.send(200, {}, {"data": [{"id": "the-model"}]})

        def send(self, status: int, headers: dict[str, str], value: object) -> None:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {**headers, "content-length": str(len(data))}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def opened(url: str, **policy: object) -> ChatPolicy:
    config = {"tasks": {"suite": "x"}, "policy": {"api": "chat", "url": url, **policy}, "rollout": {"temperature": 0.7}}
    found = await start_chat_policy(Config.model_validate(config))
    found.first_wait = 0.01
    return found


async def test_a_conversation_goes_out_as_messages_and_an_answer_comes_back(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with serving(lambda body: answer()) as (url, asked):
        for base in (url, f"{url}/v1", f"{url}/v1/"):
            policy = await opened(base, key_env="MY_KEY", body={"top_p": 0.5})
            completion = await policy.sample(PROMPT, 100, 7)
            await policy.close()
    assert (completion.text, completion.stopped, completion.tokens_in, completion.tokens_out) == ("hello", True, 11, 3)
    assert completion.ids == (*b"hello", 256) and len(completion.logprobs) == 6
    assert asked[0]["messages"] == [
        {"role": "system", "content": "Be good."},
        {"role": "user", "content": "Fix it."},
        {"role": "assistant", "content": "ls"},
        {"role": "user", "content": "a.py"},
    ]
    wanted = {"path": "/v1/chat/completions", "model": "the-model", "temperature": 0.7, "max_tokens": 100, "seed": 7, "top_p": 0.5}
    assert all({key: one[key] for key in wanted} == wanted and one["key"] == "Bearer secret" for one in asked) and len(asked) == 3


@pytest.mark.parametrize(
    "failure",
    [
        (429, {"retry-after": "0"}, "slow down"),
        (429, {}, "slow down"),
        (503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, b"<html>busy</html>"),
        (500, {}, b""),
        (200, {}, b"<html>a proxy's page</html>"),
        (200, {}, {"choices": []}),
        (200, {}, {"error": "odd"}),
    ],
)
async def test_what_may_pass_is_tried_again_and_then_an_error_of_the_engine(failure):
    replies = iter([failure, failure, answer()])
    with serving(lambda body: next(replies)) as (url, asked):
        policy = await opened(url)
        assert (await policy.sample(PROMPT, 9, 0)).text == "hello" and len(asked) == 3
        await policy.close()
    with serving(lambda body: failure) as (url, asked):
        policy = await opened(url, attempts=2)
        with pytest.raises(PolicyError, match="2 attempts"):
            await policy.sample(PROMPT, 9, 0)
        assert len(asked) == 2
        await policy.close()


async def test_a_server_is_waited_for_as_long_as_it_asks():
    replies = iter([(429, {"retry-after": "0.3"}, "x"), answer()])
    with serving(lambda body: next(replies)) as (url, asked):
        policy = await opened(url)
        await policy.sample(PROMPT, 9, 0)
        await policy.close()
    assert asked[1]["at"] - asked[0]["at"] >= 0.3


async def test_requests_are_paced():
    with serving(lambda body: answer()) as (url, asked):
        policy = await opened(url, requests_per_minute=600)
        for _ in range(4):
            await policy.sample(PROMPT, 9, 0)
        await policy.close()
    assert asked[3]["at"] - asked[0]["at"] >= 0.28


async def test_a_server_that_hangs_is_given_up():
    def hang(body: dict) -> Reply:
        time.sleep(2)
        return answer()

    with serving(hang) as (url, asked):
        policy = await opened(url, request_seconds=0.2, attempts=2, model="given")  # so that it is not asked for, within 0.2 s
        with pytest.raises(PolicyError, match="ReadTimeout"):
            await policy.sample(PROMPT, 9, 0)
        await policy.close()
        for _ in range(100):  # the server notes a request when it gets to it
            await asyncio.sleep(0.1 if len(asked) < 2 else 0)
        assert len(asked) == 2


async def test_a_refusal_is_not_tried_again_and_a_full_context_is_none():
    with serving(lambda body: (401, {}, "no such key")) as (url, asked):
        policy = await opened(url)
        with pytest.raises(PolicyError, match=r"401: .*no such key"):
            await policy.sample(PROMPT, 9, 0)
        await policy.close()
    assert len(asked) == 1
    with serving(lambda body: (400, {}, "This model's maximum context length is 8192 tokens")) as (url, _):
        policy = await opened(url)
        with pytest.raises(ContextFull):
            await policy.sample(PROMPT, 9, 0)
        await policy.close()


async def test_what_a_chat_server_cannot_do_for_training_is_refused(tmp_path, capsys):
    with serving(lambda body: answer()) as (url, _):
        policy = await opened(url)
        with pytest.raises(PolicyError, match="log-probs"):
            await policy.logprobs([1])
        with pytest.raises(PolicyError, match="weights"):
            await policy.load("x", 1)
        await policy.close()
    with pytest.raises(PolicyError, match=r"set policy\.model"):
        await opened("http://127.0.0.1:1")
    with pytest.raises(ValueError, match=r"policy\.url is missing"):
        await opened(None)
    (tmp_path / "c.yaml").write_text("tasks: {suite: x}\nmodel: {path: m}\npolicy: {api: chat, url: 'http://x'}\n")
    assert main(["train", str(tmp_path / "c.yaml"), "--run", str(tmp_path / "run")]) == 2
    assert "training needs policy.api: tokens" in capsys.readouterr().err and not (tmp_path / "run").exists()


def fix(body: dict) -> Reply:
    """Solves the toy task `add`; asks for nothing else."""
    if "add(2, 3)" not in body["messages"][1]["content"]:
        return 400, {}, "maximum context length exceeded"
    turn = sum(message["role"] == "assistant" for message in body["messages"])
    edit = "```edit\ncalc.py\n<<<<<<<\n    return a - b\n=======\n    return a + b\n>>>>>>>\n```"
    return answer([edit, "```submit\n```"][turn])


@pytest.mark.bubblewrap
def test_an_evaluation_over_http_resolves_what_the_server_solves_and_counts_tokens_and_cost(tmp_path, capsys):
    toy_suite(tmp_path / "toy")
    with serving(fix) as (url, _):
        words = ["eval", str(tmp_path / "toy"), "--policy", url, "--out", str(tmp_path / "out"), "--sandbox", "bubblewrap"]
        assert main([*words, "--policy.price_in", "1000", "--policy.price_out", "10000"]) == 0
    results = load_results(tmp_path / "out")
    assert (results.resolved, results.instances, results.infra) == (1, 3, 0)
    assert (results.tokens_in, results.tokens, results.cost) == (22, 6, pytest.approx(22e-3 + 60e-3))
    assert "cost" in capsys.readouterr().out
    with Journal(tmp_path / "out", readonly=True) as journal:
        stops = {row.instance_id: row.stop for row in journal.rows()}
        assert journal.episode("greengrad__toy-add").turns[0].completion.tokens_in == 11
    assert stops["greengrad__toy-add"] == Stop.SUBMITTED and stops["greengrad__toy-words"] == Stop.CONTEXT_FULL


@pytest.mark.bubblewrap
def test_a_server_that_fails_makes_infra_and_never_a_zero(tmp_path, capsys):
    toy_suite(tmp_path / "toy")
    with serving(lambda body: (500, {}, "down")) as (url, _):
        words = ["eval", str(tmp_path / "toy"), "--policy", url, "--out", str(tmp_path / "out"), "--sandbox", "bubblewrap"]
        assert main([*words, "--policy.attempts", "1", "--rollout.infra_retries", "0"]) == 1
    results = load_results(tmp_path / "out")
    assert (results.infra, results.resolved, results.clean_rate) == (3, 0, 0.0) and "without infra" in capsys.readouterr().out


@pytest.mark.vllm
async def test_the_real_vllm_answers_a_chat(smollm2, tmp_path):
    config = Config.model_validate(
        {
            "tasks": {"suite": "x"},
            "model": {"path": str(smollm2), "context": 512},
            "policy": {"memory_gb": 1, "max_requests": 2},
            "rollout": {"temperature": 0.1},
        }
    )
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    engine = await start_engine(engine_command(config.model, config.policy, port), url, tmp_path / "vllm.log")
    try:
        policy = await opened(url)
        completion = await policy.sample(TEMPLATE.start("You answer briefly.", "What is the capital of France?"), 30, 0)
        assert completion.text.strip() and completion.tokens_in > 15 and 0 < completion.tokens_out <= 30
        again = await policy.sample(TEMPLATE.start("You answer briefly.", "What is the capital of France?"), 30, 0)
        assert again.tokens_in == completion.tokens_in
        with pytest.raises(ContextFull):
            await policy.sample(TEMPLATE.start("You answer briefly.", "word " * 2000), 30, 0)
        await policy.close()
    finally:
        await engine.stop()


@pytest.mark.parametrize("usage", [[1], "many", {"prompt_tokens": "x"}, {"prompt_tokens": 1e400}])
async def test_a_server_that_counts_nonsense_or_answers_half_a_surrogate_pair_is_heard(usage: object) -> None:
    found = {"choices": [{"message": {"content": "a\ud800"}}], "usage": usage}
    with serving(lambda body: (200, {}, found)) as (url, _):
        policy = await start_chat(PolicyConfig(api="chat", url=url), 0.0)
        told = await policy.sample(ByteTemplate().start("a", "b"), 5, seed=0)
        await policy.close()
    assert (told.text, told.tokens_in, told.tokens_out) == ("a?", 0, 0)
