"""The command line as a user runs it: real processes, exit codes, one line for a mistake."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.journal import Journal, JournalError
from tasks import Prediction, load_suite, toy_suite, write_predictions
from tasks.swebench import instance_row

GREENGRAD = [sys.executable, "-m", "pipeline.cli"]
REPOSITORY = Path(__file__).parent.parent
BACKENDS = [pytest.param("docker", marks=pytest.mark.docker), pytest.param("bubblewrap", marks=pytest.mark.bubblewrap)]
NAMES = ["greengrad__toy-add", "greengrad__toy-clamp", "greengrad__toy-words"]


def greengrad(*words: str | Path, before: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*before, *GREENGRAD, *(str(word) for word in words)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, cwd=REPOSITORY)


def refused(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The one line of a command that failed as it should."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "suite"
    assert len(toy_suite(folder).tasks) == 3
    return folder


# --- what works ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_gold_resolves_everything_and_the_second_run_repeats_nothing(suite: Path, tmp_path: Path, backend: str) -> None:
    words = ("eval", suite, "--policy", "gold", "--out", tmp_path / "out", "--sandbox", backend, "-j", "2")
    first = greengrad(*words)
    assert first.returncode == 0, first.stderr
    assert "3/3" in first.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert sorted(report["resolved_ids"]) == NAMES and report["schema_version"] == 2
    predictions = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert sorted(row["instance_id"] for row in predictions) == NAMES and all(row["model_patch"] for row in predictions)
    for name in NAMES:
        logs = {path.name for path in (tmp_path / "out" / "logs" / name).iterdir()}
        assert {"patch.diff", "eval.sh", "test_output.txt", "report.json"} <= logs
    again = greengrad(*words)
    assert again.returncode == 0 and "3/3" in again.stdout
    with Journal(tmp_path / "out", readonly=True) as journal:
        assert len(journal.rows()) == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_noop_resolves_nothing_and_that_is_no_failure_of_the_command(suite: Path, tmp_path: Path, backend: str) -> None:
    done = greengrad("eval", suite, "--policy", "noop", "--out", tmp_path / "out", "--sandbox", backend, "--limit", "2")
    assert done.returncode == 0, done.stderr
    assert "0/2" in done.stdout
    assert sorted(json.loads((tmp_path / "out" / "report.json").read_text())["empty_patch_ids"]) == NAMES[:2]


@pytest.mark.bubblewrap
def test_predictions_of_one_run_are_graded_to_the_same_verdicts_by_another(suite: Path, tmp_path: Path) -> None:
    assert greengrad("eval", suite, "--policy", "gold", "--out", tmp_path / "a", "--sandbox", "bubblewrap").returncode == 0
    lines = (tmp_path / "a" / "predictions.jsonl").read_text().splitlines()
    (tmp_path / "two.jsonl").write_text("\n".join(lines[:2]) + "\n")
    words = ("grade", suite, "--predictions", tmp_path / "two.jsonl", "--out", tmp_path / "b", "--sandbox", "bubblewrap")
    done = greengrad(*words)
    assert done.returncode == 0 and "2/2" in done.stdout, done.stderr
    assert len(json.loads((tmp_path / "b" / "report.json").read_text())["resolved_ids"]) == 2
    changed = json.loads(lines[0]) | {"model_patch": ""}
    (tmp_path / "two.jsonl").write_text(json.dumps(changed) + "\n")
    assert "holds a verdict on another patch" in refused(greengrad(*words))


@pytest.mark.bubblewrap
def test_the_verdicts_of_saved_logs_are_the_same_again(suite: Path, tmp_path: Path) -> None:
    assert greengrad("eval", suite, "--policy", "gold", "--out", tmp_path, "--sandbox", "bubblewrap").returncode == 0
    before = (tmp_path / "report.json").read_text()
    done = greengrad("regrade", tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}: 3 verdicts: 3 resolved\n")
    assert (tmp_path / "report.json").read_text() == before
    log = tmp_path / "logs" / NAMES[0] / "test_output.txt"
    log.write_text(log.read_text().replace("PASSED", "FAILED"))
    assert greengrad("regrade", tmp_path).stdout == f"{tmp_path}: 3 verdicts: 2 resolved, 1 unresolved\n"
    assert "no graded instance" in refused(greengrad("regrade", suite))


@pytest.mark.bubblewrap
def test_validation_tells_a_sound_task_from_one_whose_gold_patch_does_nothing(suite: Path, tmp_path: Path) -> None:
    shutil.copytree(suite, tmp_path / "suite")
    words = ("tasks", "validate", tmp_path / "suite", "--sandbox", "bubblewrap")
    assert greengrad(*words).stdout.startswith("3 of 3 tasks are sound; 0 have no verdict (infrastructure)\nmedian ")
    gold = tmp_path / "suite" / "tasks" / NAMES[0] / "gold.patch"
    gold.write_text(gold.read_text().replace("+    return a + b", "+    return a * b"))
    done = greengrad(*words)
    assert done.returncode == 1
    assert f"{NAMES[0]}: not sound: the gold patch does not resolve: unresolved" in done.stdout and "2 of 3 tasks are sound" in done.stdout


@pytest.mark.bubblewrap
def test_a_rollout_records_every_turn_and_can_be_shown_and_viewed(suite: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("--tasks", suite, "--run", run, "--rollout.group_size", "2", "--sandbox.backend", "bubblewrap", "--tasks.limit", "1")
    done = greengrad("rollout", "configs/rollout_gold.yaml", *words)
    assert done.returncode == 0, done.stderr
    with Journal(run, readonly=True) as journal:
        first, second = journal.episodes(0)
        assert first.turns[-1].call is not None and first.turns[-1].call.name == "submit"
        assert first.group_id == second.group_id and first.reward == second.reward == 1.0
    assert {"config.yaml", "manifest.json", "journal.sqlite", "predictions.jsonl", "report.json"} <= {path.name for path in run.iterdir()}
    assert "submitted" in greengrad("show", run).stdout
    assert "turn 1:" in greengrad("show", run, first.episode_id).stdout
    assert greengrad("view", run).stdout.strip() == f"{run}/report.html"


def hanging_eval(suite: Path, folder: Path, backend: str, interrupts: signal.Handlers) -> tuple[subprocess.Popen[str], str]:
    """An eval whose agent sleeps in its sandbox, and the command that sleeps. `interrupts`: what it inherits for SIGINT."""
    mark = f"sleep 300.{os.getpid()}"
    (folder / "script.json").write_text(json.dumps({"*": [{"name": "bash", "arguments": {"command": mark}}]}))
    words = ["eval", str(suite), "--policy", f"script:{folder}/script.json", "--out", str(folder / "out"), "--sandbox", backend]
    limits = ["--sandbox.command_seconds", "250"]
    process = subprocess.Popen(
        [*GREENGRAD, *words, *limits],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        preexec_fn=lambda: signal.signal(signal.SIGINT, interrupts),
    )
    return process, mark


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_tears_the_sandboxes_down_first(suite: Path, tmp_path: Path, backend: str, number: int, code: int) -> None:
    ignores = signal.SIG_IGN if number == signal.SIGTERM else signal.SIG_DFL  # as a program behind & in a script does
    process, mark = hanging_eval(suite, tmp_path, backend, ignores)
    try:
        wait_until(lambda: any(processes_with(mark)), 120)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert not any(processes_with(mark))
    finally:
        process.kill()
    assert process.returncode == code
    assert errors.strip().splitlines()[-1] == "greengrad eval: interrupted"


@pytest.mark.bubblewrap
@pytest.mark.parametrize("verb", ["eval", "grade"])
def test_a_killed_evaluation_goes_on_with_the_same_command_to_the_same_result(suite: Path, tmp_path: Path, verb: str) -> None:
    source = ["--policy", "gold"]
    if verb == "grade":
        write_predictions(tmp_path / "gold.jsonl", [Prediction(t.instance_id, "gold", t.gold_patch) for t in load_suite(suite).tasks])
        source = ["--predictions", str(tmp_path / "gold.jsonl")]
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    words = [verb, str(suite), *source, "--sandbox", "bubblewrap", "-j", "1", "--out"]
    process = subprocess.Popen([*GREENGRAD, *words, str(out)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=REPOSITORY)
    try:
        wait_until(lambda: count_episodes(out) >= 1, 120)
    finally:
        process.kill()
        process.wait()
    before = count_episodes(out)
    assert before < 3
    done = greengrad(*words, str(out))
    assert (done.returncode, "3/3" in done.stdout) == (0, True), done.stderr
    assert f"{3 - before}/{3 - before} in" in done.stderr
    assert count_episodes(out) == 3
    assert greengrad(*words, str(undisturbed)).returncode == 0
    assert artefacts(out) == artefacts(undisturbed)


def artefacts(out: Path) -> dict[str, str]:
    """The official files of an evaluation, by path."""
    names = [out / "report.json", out / "predictions.jsonl", *out.rglob("logs/**/report.json"), *out.rglob("logs/**/patch.diff")]
    found = {str(path.relative_to(out)): path.read_text() for path in names if path.exists()}
    assert len(found) > 3
    return found


def count_episodes(out: Path) -> int:
    """As a reader beside the writer sees it."""
    if not (out / "journal.sqlite").exists():
        return 0
    try:
        with Journal(out, readonly=True) as journal:
            return len(journal.rows())
    except JournalError:  # it is being made
        return 0


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def processes_with(text: str) -> Iterator[str]:
    """Command lines of all processes whose own command is the text."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if line == text:
            yield line


@pytest.mark.parametrize("name", ["quickstart", "nebius_stage1", "nebius_stage2", "rft", "rollout_gold", "ms_grpo"])
def test_plan_prints_sizes_and_memory_and_touches_nothing(tmp_path: Path, name: str) -> None:
    command = [*GREENGRAD, "plan", str(REPOSITORY / "configs" / f"{name}.yaml"), "--placement.parameters_b", "0.135"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "memory of phase" in done.stdout and "sandboxes" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_doctor_says_what_works_as_json() -> None:
    done = greengrad("doctor", "--json")
    found = json.loads(done.stdout)
    assert {"docker", "bubblewrap", "gpu", "vllm", "deepspeed", "disk", "memory"} <= set(found)
    assert done.returncode == (0 if found["docker"]["ok"] or found["bubblewrap"]["ok"] else 1)


# --- bad input -------------------------------------------------------------------------------------------------


def test_an_unknown_key_gets_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("tasks: {suite: s}\noptim: {learning_rat: 3, lrr: 1}\n")
    assert "unknown key optim.lrr (did you mean optim.lr?)" in refused(greengrad("plan", tmp_path / "c.yaml"))
    line = refused(greengrad("train", "configs/quickstart.yaml", "--run", tmp_path / "run", "--credit.kid", "episode"))
    assert line == "greengrad train: command line: unknown key credit.kid (did you mean credit.kind?)"
    assert not (tmp_path / "run").exists()


def test_a_missing_suite_is_told(tmp_path: Path) -> None:
    line = refused(greengrad("eval", tmp_path / "none", "--policy", "gold", "--out", tmp_path / "out"))
    assert f"{tmp_path}/none" in line and "tasks build" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "told"), [("task.yaml", "a: [", "task.yaml"), ("tests.json", "{", "tests.json"), ("gold.patch", None, "gold.patch")]
)
def test_a_corrupt_task_folder_is_named_with_its_file(suite: Path, tmp_path: Path, name: str, text: str | None, told: str) -> None:
    shutil.copytree(suite, tmp_path / "suite")
    broken = tmp_path / "suite" / "tasks" / NAMES[1] / name
    broken.unlink() if text is None else broken.write_text(text)
    line = refused(greengrad("eval", tmp_path / "suite", "--policy", "gold", "--out", tmp_path / "out"))
    assert NAMES[1] in line and told in line
    assert not (tmp_path / "out").exists()
    listed = greengrad("tasks", "list", tmp_path / "suite")
    assert listed.returncode == 1 and NAMES[0] in listed.stdout and told in listed.stderr


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{not json", "preds.jsonl:2: malformed JSON"),
        ('["a"]', "preds.jsonl:2: an object is needed"),
        ('{"model_patch": ""}', "preds.jsonl:2: instance_id is missing"),
        ('{"instance_id": "greengrad__toy-ad", "model_patch": ""}', "not in"),
        ('{"instance_id": "greengrad__toy-clamp", "model_patch": 3}', "preds.jsonl:2: model_patch must be text"),
        ('{"instance_id": "greengrad__toy-add", "model_patch": ""}', "more than one prediction for greengrad__toy-add"),
    ],
)
def test_bad_predictions_are_refused_with_their_line_and_nothing_is_written(suite: Path, tmp_path: Path, line: str, told: str) -> None:
    good = json.dumps({"instance_id": "greengrad__toy-add", "model_name_or_path": "m", "model_patch": ""})
    (tmp_path / "preds.jsonl").write_text(f"{good}\n{line}\n")
    assert told in refused(greengrad("grade", suite, "--predictions", tmp_path / "preds.jsonl", "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("policy", "told"), [("script:{}/none", "No such file"), ("script:{}/deep", "not JSON"), ("model:{}/none", "no such")]
)
def test_an_agent_that_is_not_there_is_refused_before_the_run_folder_is_made(suite: Path, tmp_path: Path, policy: str, told: str) -> None:
    (tmp_path / "deep").write_text("[" * 100_000)
    line = refused(greengrad("eval", suite, "--policy", policy.format(tmp_path), "--out", tmp_path / "out", HF_HUB_OFFLINE="1"))
    assert told in line and not (tmp_path / "out").exists()


def test_an_empty_suite_and_an_instance_in_two_splits_are_told(suite: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    assert "holds no tasks" in refused(greengrad("tasks", "validate", tmp_path / "empty.jsonl"))
    row = instance_row(load_suite(suite).tasks[0])
    (tmp_path / "two.json").write_text(json.dumps([row, row | {"split": "dev"}]))
    words = ("eval", tmp_path / "two.json", "--policy", "noop", "--out", tmp_path / "out")
    assert "is in more than one split" in refused(greengrad(*words))


def test_where_the_sound_tasks_cannot_be_kept_is_told_before_anything_is_validated(suite: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refused(greengrad("tasks", "validate", suite, "--keep", tmp_path / "file"))


@pytest.mark.bubblewrap
def test_an_image_of_a_registry_asks_for_docker_where_bubblewrap_was_chosen(tmp_path: Path) -> None:
    rows = REPOSITORY / "tests" / "data" / "verified_slice.parquet"
    words = ("eval", rows, "--policy", "noop", "--out", tmp_path / "out", "--limit", "1", "--sandbox", "bubblewrap")
    assert "is an image of a registry, which bubblewrap cannot run" in refused(greengrad(*words), code=1)


@pytest.mark.bubblewrap
def test_a_server_that_does_not_answer_is_told(suite: Path, tmp_path: Path) -> None:
    from pipeline.convert import tiny_model

    model = tiny_model(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    words = ("--out", tmp_path / "out", "--model.path", model, "--sandbox", "bubblewrap")
    line = refused(greengrad("eval", suite, "--policy", url, *words), code=1)
    assert url in line or "connect" in line.lower()
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


@pytest.mark.skipif(os.geteuid() != 0 and not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
def test_a_docker_socket_that_we_may_not_open_is_told(suite: Path, tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        path.chmod(0)
        no_override = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
        words = ("eval", suite, "--policy", "gold", "--out", tmp_path / "out", "--sandbox", "docker")
        line = refused(greengrad(*words, before=no_override, DOCKER_HOST=f"unix://{path}"), code=1)
    assert "permission" in line.lower()


@pytest.mark.bubblewrap
def test_a_full_disk_ends_the_run_with_one_line(suite: Path, tmp_path: Path) -> None:
    fill = {"name": "bash", "arguments": {"command": "head -c 1000000 /dev/urandom | base64 > big.txt"}}
    (tmp_path / "script.json").write_text(json.dumps({"*": [fill]}))
    out = tmp_path / "out"
    out.mkdir()
    mount = ("unshare", "--mount" if os.geteuid() == 0 else "--mount --map-root-user", "sh", "-c")
    shell = f'mount -t tmpfs -o size=400k tmpfs {out} && exec "$@"'
    words = ("eval", suite, "--policy", f"script:{tmp_path}/script.json", "--out", out, "--sandbox", "bubblewrap", "-j", "1")
    done = greengrad(*words, before=(*" ".join(mount).split(), shell, "sh"))
    assert done.returncode == 1, done.stderr
    assert "make room and run the same command again" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "required"),
        (("frobnicate",), "invalid choice"),
        (("eval",), "required"),
        (("eval", "x", "--policy", "bogus", "--out", "y"), "choose gold, noop, script:FILE, model:DIR or a URL"),
        (("grade", "x", "--predictions", "p", "--out", "o", "-j", "0"), "not a positive number"),
        (("show", "/nowhere"), "is this a run folder"),
        (("plan", "/nowhere.yaml"), "no such configuration file"),
        (("rollout", "configs/rollout_gold.yaml", "--tasks.suite"), "--tasks.suite needs a value"),
    ],
)
def test_wrong_use_is_one_line_and_2(words: tuple[str, ...], told: str) -> None:
    assert told in refused(greengrad(*words))
