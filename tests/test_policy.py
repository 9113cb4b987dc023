import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import pytest_asyncio

from pipeline.batch import build_batch
from pipeline.collect import Schedule, collect
from pipeline.config import (
    Config,
    CreditConfig,
    LearnerConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PolicyConfig,
    RolloutConfig,
    TasksConfig,
)
from pipeline.engine import engine_command, start_engine
from pipeline.engines import start_policy
from pipeline.fake import SoftmaxLearner, SoftmaxPolicy
from pipeline.learner import DeepSpeedLearner
from pipeline.orders import LearnerSetup
from pipeline.policy import Sampling, VllmPolicy
from pipeline.prompt import ByteTemplate, Chat, load_chat
from pipeline.publish import PublishError, as_sample, compare, publish
from pipeline.rollout import Rig
from pipeline.types import PolicyError
from sandbox import Limits, Pool, diff, open_backend
from tasks import Outcome, Verdict
from tasks.toy import toy_suite

# --- the client, without a server ------------------------------------------------------------------------------

SAMPLING = Sampling(0.7, (256,))


class Server:
    """Answers like vLLM; `failures` are given first (a status, or "drop")."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.bodies = []
        self.queries = []

    def __call__(self, request):
        body = json.loads(request.content)
        self.bodies.append((request.url.path, body))
        self.queries.append(request.url.query.decode())
        if self.failures:
            failure = self.failures.pop(0)
            if failure == "drop":
                raise httpx.ReadError("connection reset")
            return httpx.Response(failure, text="wrong")
        match request.url.path:
            case "/inference/v1/generate":
                content = [{"token_id": one, "logprob": -0.5, "top_logprobs": []} for one in (104, 105, 256)]
                choice = {
                    "token_ids": [104, 105, 256],
                    "logprobs": {"content": content},
                    "finish_reason": "stop",
                    "weight_versions": [{"version": "3", "start": 0, "end": 1}, {"version": "4", "start": 1, "end": 3}],
                }
                return httpx.Response(200, json={"choices": [choice]})
            case "/reset_prefix_cache":
                return httpx.Response(200, json={"success": True})
            case "/collective_rpc":
                return httpx.Response(200, json={"results": [{"a": "float32 [1] 00"} if body["method"] == "digest_weights" else None]})
            case _:
                return httpx.Response(200)


def connect(server, **options):
    client = httpx.AsyncClient(base_url="http://engine", transport=httpx.MockTransport(server))
    policy = VllmPolicy(client, ByteTemplate(), SAMPLING, **options)
    policy.retry_seconds = 0.0
    return policy


async def test_every_sampling_parameter_is_sent_with_each_request():
    server = Server()
    await connect(server).sample([1, 2, 3], 7, seed=5)
    sent = server.bodies[0][1]
    off = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert sent["token_ids"] == [1, 2, 3]
    assert (
        sent["sampling_params"].items() >= (off | {"temperature": 0.7, "max_tokens": 7, "seed": 5, "stop_token_ids": [256], "n": 1}).items()
    )


async def test_a_completion_keeps_ids_logprobs_and_the_version_of_each_id():
    completion = await connect(Server()).sample([1], 7, seed=5)
    assert (completion.ids, completion.logprobs, completion.text, completion.version, completion.stopped) == (
        (104, 105, 256),
        (-0.5, -0.5, -0.5),
        "hi",
        3,
        True,
    )
    assert completion.versions().tolist() == [3, 4, 4]


async def test_at_a_temperature_only_the_tokens_that_are_wanted_cost_a_request():
    server = Server()
    scores_T = await connect(server).logprobs([104] * 5, np.array([True, False, True, False, True]))
    assert scores_T.tolist() == [0.0, 0.0, -0.5, 0.0, -0.5]
    assert [len(body["token_ids"]) for _, body in server.bodies] == [2, 4], "nothing is before the first"


async def test_a_failure_that_passes_is_not_seen():
    server = Server("drop", 503, "drop")
    assert (await connect(server).sample([1], 7, seed=5)).text == "hi"
    assert len(server.bodies) == 4


@pytest.mark.parametrize(("failures", "attempts"), [(["drop"] * 9, 4), ([500] * 9, 4), ([400], 1)])
async def test_a_failure_that_stays_is_a_policy_error_after_a_bounded_number_of_attempts(failures, attempts):
    server = Server(*failures)
    with pytest.raises(PolicyError):
        await connect(server).sample([1], 7, seed=5)
    assert len(server.bodies) == attempts


@pytest.mark.parametrize(("in_flight", "mode"), [(False, "wait"), (True, "keep")])
async def test_loading_pauses_empties_the_prefix_cache_names_the_version_and_resumes(in_flight, mode):
    server = Server()
    policy = connect(server, in_flight=in_flight)
    assert await policy.load(Path("weights"), 4) == {"a": "float32 [1] 00"}
    assert policy.version == 4
    rpc = "/collective_rpc"
    order = ["/pause", rpc, rpc, "/reset_prefix_cache", "/update_weight_version", rpc, "/resume"]
    assert [path for path, _ in server.bodies] == order
    assert server.queries[0] == f"mode={mode}" and server.bodies[1][1]["args"] == [f"{os.getcwd()}/weights"]


class BrokenLoader(Server):
    def __call__(self, request):
        answer = super().__call__(request)
        return httpx.Response(400, text="no such folder") if request.url.path == "/collective_rpc" else answer


async def test_a_server_whose_loading_fails_goes_on_with_its_requests():
    server = BrokenLoader()
    policy = connect(server)
    with pytest.raises(PolicyError, match="400"):
        await policy.load(Path("weights"), 4)
    assert [path for path, _ in server.bodies] == ["/pause", "/collective_rpc", "/resume"] and policy.version == 0


async def test_an_engine_wakes_also_after_a_step_that_fails():
    server = Server()
    with pytest.raises(FloatingPointError):
        async with connect(server).asleep():
            raise FloatingPointError
    assert [path for path, _ in server.bodies] == ["/sleep", "/wake_up"] and server.queries[0] == "level=1"


async def test_a_pause_ends_although_every_place_for_a_request_is_taken():
    """Requests that wait for the end of a pause hold all places: that end must get through."""
    resumed = asyncio.Event()

    async def answer(request):
        if request.url.path == "/inference/v1/generate":
            await resumed.wait()
        if request.url.path == "/resume":
            resumed.set()
        return server(request)

    server = Server()
    client = httpx.AsyncClient(base_url="http://engine", transport=httpx.MockTransport(answer))
    policy = VllmPolicy(client, ByteTemplate(), SAMPLING, requests=2)
    waiting = [asyncio.create_task(policy.sample([1], 7, seed)) for seed in range(5)]
    async with asyncio.timeout(10):
        await policy.load(Path("weights"), 1)
        assert len(await asyncio.gather(*waiting)) == 5


def test_the_server_takes_no_defaults_from_the_model_folder(tmp_path):
    command = " ".join(engine_command(ModelConfig(path=tmp_path), PolicyConfig(), 8000))
    for option in ("--generation-config vllm", "--logprobs-mode processed_logprobs", "--host 127.0.0.1", "--dtype bfloat16"):
        assert option in command


# --- publish, on fakes -------------------------------------------------------------------------------------------


async def test_a_publish_is_verified_on_the_probes(tmp_path):
    chat = Chat(ByteTemplate())
    learner, policy = SoftmaxLearner(chat, ["a", "b"]), SoftmaxPolicy(chat, ["a", "b"])
    learner.model.weights_A = np.array([1.0, -1.0])
    metrics = await publish(
        learner, policy, tmp_path / "w", 1, probes=[as_sample(chat.write("a")), as_sample(chat.write("b"))], tolerance=1e-6
    )
    assert policy.version == 1 and policy.weights_A.tolist() == [1.0, -1.0]
    assert metrics["publish/delta_mean"] <= metrics["publish/delta_max"] < 1e-6


async def test_a_publish_that_did_not_arrive_stops_the_run(tmp_path):
    class Deaf(SoftmaxPolicy):
        async def load(self, folder, version):
            self.version = version
            return self.digests()

    chat = Chat(ByteTemplate())
    learner, policy = SoftmaxLearner(chat, ["a", "b"]), Deaf(chat, ["a", "b"])
    learner.model.weights_A = np.array([3.0, -3.0])
    probe = as_sample([5, *chat.write("b")])
    with pytest.raises(PublishError, match="does not hold the learner's weights"):
        await publish(learner, policy, tmp_path / "w", 1, probes=[probe], tolerance=0.08)


async def test_a_publish_with_nothing_to_compare_is_refused():
    chat = Chat(ByteTemplate())
    with pytest.raises(ValueError, match="probe"):
        await compare(SoftmaxLearner(chat, ["a"]), SoftmaxPolicy(chat, ["a"]), [as_sample([1])])


# --- the guard -----------------------------------------------------------------------------------------------------


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize(("stubborn", "children_too"), [("", False), ("trap '' TERM;", False), ("", True)])
def test_the_engine_dies_with_its_owner_even_by_kill_9(tmp_path, stubborn, children_too):
    """Ray kills the children of an actor that has died."""
    script = f"{stubborn} sleep 600 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/leader; while :; do sleep 1; done"
    guard = [sys.executable, "-c", "import pipeline.guard as g; g.GRACE_SECONDS = 1.0; g.main(['bash', '-c', g.sys.argv[1]])", script]
    owner = f"import subprocess, time; subprocess.Popen({guard!r}, stdin=subprocess.PIPE); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", owner])
    assert wait_until(lambda: (tmp_path / "leader").exists() and (tmp_path / "leader").read_text().strip())
    pids = [int((tmp_path / name).read_text()) for name in ("child", "leader")]
    assert all(is_running(pid) for pid in pids)
    children = psutil.Process(process.pid).children()
    os.kill(process.pid, signal.SIGKILL)
    for child in children if children_too else ():
        child.kill()
    process.wait()
    assert wait_until(lambda: not any(is_running(pid) for pid in pids))


async def test_an_engine_that_ends_at_its_start_shows_its_last_words(tmp_path):
    command = [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"]
    with pytest.raises(PolicyError, match=r"ended at its start(.|\n)*no such model"):
        await start_engine(command, "http://127.0.0.1:1", tmp_path / "vllm.log")


async def test_an_address_where_nothing_listens_is_a_policy_error():
    policy = VllmPolicy(httpx.AsyncClient(base_url="http://127.0.0.1:1"), ByteTemplate(), SAMPLING)
    policy.retry_seconds = 0.0
    with pytest.raises(PolicyError, match="ConnectError"):
        await policy.prepare()


# --- the real thing ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bent(Sampling):
    """A server with a default that nobody asked for."""

    bend: dict[str, float] = field(default_factory=dict)

    def parameters(self, max_tokens, seed):
        return Sampling.parameters(self, max_tokens, seed) | self.bend


real = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]
CONTEXT = 1024
TOLERANCE = 0.08


def make_config(model, temperature=1.0):
    return Config(
        model=ModelConfig(path=model, context=CONTEXT),
        tasks=TasksConfig(suite=model),
        rollout=RolloutConfig(
            tasks_per_step=1, group_size=2, max_turns=4, max_new_tokens=48, format_errors=9, observation_chars=300, temperature=temperature
        ),
        policy=PolicyConfig(memory_gb=1, max_requests=8),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(smollm2, tmp_path_factory):
    """One server for the whole module: it takes half a minute to start."""
    policy = await start_policy(make_config(smollm2), load_chat(smollm2).template, tmp_path_factory.mktemp("engine") / "vllm.log")
    yield policy
    await policy.close()


@pytest.fixture(scope="module")
def moved(smollm2, tmp_path_factory):
    """SmolLM2 with another embedding, every other tensor as it was."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("models") / "moved"
    folder.mkdir()
    for file in smollm2.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(smollm2 / "model.safetensors")
    assert "lm_head.weight" not in tensors, "tied: the head is not in the file"
    name = "model.embed_tokens.weight"
    noise = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0)).to(tensors[name].dtype)
    tensors[name] = tensors[name] + 0.05 * noise
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@contextmanager
def open_learner(folder, logs):
    learner = DeepSpeedLearner(LearnerSetup(folder, LearnerConfig(), OptimConfig(), LossConfig(), logs))
    try:
        yield learner
    finally:
        learner.close()


@pytest.fixture(scope="module")
def probes(smollm2):
    template = load_chat(smollm2).template
    texts = [
        "def add(a, b):\n    return a - b\n",
        "The capital of France is Paris, and that of Italy is Rome.",
        "x = [1, 2, 3]\nfor y in x:\n",
    ]
    return [template.start("You fix bugs.", text)[:96] for text in texts]


class TestRealEngine:
    pytestmark = real

    @pytest.mark.bubblewrap
    @pytest.mark.deepspeed
    async def test_the_ids_trained_are_the_ids_sampled_and_both_models_agree_on_them(self, engine, smollm2, tmp_path):
        """Three turns or more in a real sandbox; then publishes: of the same weights, of another embedding, and one that fails."""
        task = toy_suite(tmp_path / "suite").tasks[0]
        config = make_config(smollm2)

        verdicts = cycle([Outcome.RESOLVED, Outcome.UNRESOLVED])

        async def grade(task, patch):
            return Verdict(task.instance_id, next(verdicts))

        async with Pool(open_backend("bubblewrap"), Limits(memory_mb=256, disk_mb=64, command_seconds=10), 2) as machines:
            rig = Rig(load_chat(smollm2), machines, diff, grade, config.rollout, CONTEXT, 10.0, 120.0)
            groups = await anext(collect(engine, [task], rig, Schedule(steps=1)))
        episodes = groups[0].episodes
        assert all(len(episode.turns) >= 3 for episode in episodes), [(episode.stop, episode.error) for episode in episodes]
        batch = build_batch(groups, CreditConfig(length_threshold=9), config.rollout.max_turns)
        assert len(batch.samples) == 2
        for sample, episode in zip(batch.samples, episodes, strict=True):
            sampled = [one for turn in episode.turns for one in turn.completion.ids]
            assert sample.ids_T[sample.mask_T].tolist() == sampled
            last = episode.turns[-1]
            assert sample.ids_T.tolist() == [*last.prompt, *last.completion.ids]
        with open_learner(smollm2, tmp_path / "logs") as learner:
            ours = await asyncio.to_thread(learner.logprobs, list(batch.samples))
            distance = np.concatenate(
                [np.abs(mine - sample.logprobs_T)[sample.mask_T] for mine, sample in zip(ours, batch.samples, strict=True)]
            )
            print(f"engine and learner on {distance.size} sampled tokens: mean {distance.mean():.4f}, max {distance.max():.3f}")
            assert distance.mean() < TOLERANCE

    @pytest.mark.deepspeed
    async def test_a_publish_arrives_also_when_the_embedding_alone_has_changed(self, engine, smollm2, moved, probes, tmp_path):
        with open_learner(smollm2, tmp_path / "logs") as learner:
            metrics = await publish(learner, engine, tmp_path / "same", 1, probes=[as_sample(one) for one in probes], tolerance=TOLERANCE)
            print(metrics)
        with open_learner(moved, tmp_path / "logs") as learner:
            before = await compare(learner, engine, [as_sample(one) for one in probes])
            metrics = await publish(learner, engine, tmp_path / "moved", 2, probes=[as_sample(one) for one in probes], tolerance=TOLERANCE)
            print(before.mean(), metrics)
        assert before.mean() > 5 * TOLERANCE, "the change must be one that a stale head would show"
        assert engine.version == 2
        assert (await engine.sample(probes[0], 8, seed=1)).version == 2

    @pytest.mark.deepspeed
    async def test_a_publish_of_which_the_server_reads_other_weights_is_refused(self, engine, smollm2, moved, probes, tmp_path):
        class Careless(VllmPolicy):
            async def load(self, folder, version):
                return await VllmPolicy.load(self, moved, version)

        policy = Careless(engine._client, engine._template, engine._sampling)
        with open_learner(smollm2, tmp_path / "logs") as learner, pytest.raises(PublishError):
            await publish(learner, policy, tmp_path / "same", 3, probes=[as_sample(one) for one in probes], tolerance=TOLERANCE)

    async def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(self, engine, probes):
        first, again, other = [await engine.sample(probes[0], 24, seed) for seed in (1, 1, 2)]
        assert first.ids == again.ids != other.ids

    async def test_scores_at_a_temperature_are_those_of_sampling(self, engine, smollm2, probes):
        await engine.load(smollm2, engine.version)  # other tests leave weights with noise, whose rounding is large
        warm = VllmPolicy(engine._client, engine._template, replace(engine._sampling, temperature=0.5))
        completion = await warm.sample(probes[0], 16, seed=3)
        scores = (await warm.logprobs([*probes[0], *completion.ids]))[len(probes[0]) :]
        cold = (await engine.logprobs([*probes[0], *completion.ids]))[len(probes[0]) :]
        assert np.abs(scores - np.array(completion.logprobs)).mean() < TOLERANCE
        assert np.abs(np.array(completion.logprobs) - cold).mean() > 0.05, "at 0.5 the log-probs are others than at 1"

    async def test_a_server_that_bends_the_distribution_is_noticed(self, engine):
        for bend in ({"top_k": 20}, {"min_p": 0.1}, {"top_p": 0.9}, {"repetition_penalty": 1.3}):
            policy = VllmPolicy(engine._client, engine._template, Bent(1.0, engine._template.stop_ids, bend))
            with pytest.raises(PolicyError, match="plain distribution"):
                await policy.prepare()

    async def test_many_requests_with_seeds_and_long_prompts_do_not_break_the_engine(self, engine, probes):
        """vLLM's CPU worker dies of a seeded request whose prompt is read in chunks."""
        prompts = [[*probes[0], *probes[number % 3] * 6, number + 100] for number in range(24)]
        completions = await asyncio.gather(*(engine.sample(prompt, 16, number) for number, prompt in enumerate(prompts)))
        assert all(completion.ids for completion in completions)

    @pytest.mark.parametrize("in_flight", [False, True])
    async def test_weights_published_while_requests_run_are_those_that_the_tokens_name(self, engine, smollm2, moved, probes, in_flight):
        """Requests that run end with the old weights, or go on with the new ones; the tokens' log-probs say by which they were sampled."""
        await engine.load(smollm2, 5)
        endless = Bent(1.0, (), {"ignore_eos": True})
        policy = VllmPolicy(engine._client, engine._template, endless, in_flight=in_flight)
        running = [asyncio.create_task(policy.sample(probe, 160, seed)) for seed, probe in enumerate(probes)]
        await wait_for_tokens(engine, 30)
        late = asyncio.create_task(policy.load(moved, 6))
        await asyncio.sleep(0)
        completions = [*await asyncio.gather(*running), await policy.sample(probes[0], 8, 9)]
        await late
        assert [sorted({*one.versions().tolist()}) for one in completions] == [[5, 6] if in_flight else [5]] * 3 + [[6]]
        rows = [([*probe, *one.ids], one, len(probe)) for probe, one in zip([*probes, probes[0]], completions, strict=True)]
        for folder, version in ((moved, 6), (smollm2, 5)):
            await engine.load(folder, version)
            gaps = [np.abs((await engine.logprobs(ids))[start:] - one.logprobs) for ids, one, start in rows]
            mine = np.concatenate([one.versions() == version for _, one, _ in rows])
            assert np.concatenate(gaps)[mine].mean() < TOLERANCE < 5 * TOLERANCE < np.concatenate(gaps)[~mine].mean()


async def wait_for_tokens(engine, count):
    """Until the server has sampled so many more."""
    begin, end = None, time.monotonic() + 60
    while time.monotonic() < end:
        text = (await engine._client.get("/metrics")).text
        lines = [line for line in text.splitlines() if line.startswith("vllm:generation_tokens_total")]
        tokens = sum(float(line.rpartition(" ")[2]) for line in lines)
        begin = tokens if begin is None else begin
        if tokens >= begin + count:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"the server sampled fewer than {count} tokens in a minute")


def test_a_probe_is_scored_on_every_token_but_the_first():
    assert as_sample([4, 5, 6]).mask_T.tolist() == [False, True, True]
