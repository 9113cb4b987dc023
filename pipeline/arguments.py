"""The words of the command line: commands, options, examples; knows nothing of what they do. Standard library only."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .arguments_tasks import add_tasks
from .words import Commands, Parser, add_command, jobs_option, positive, sandbox_option

DESCRIPTION = "From green tests to gradients: reinforcement learning for coding agents on real repositories."
ENDING = """exit codes: 0 done, 1 the work failed or infra verdicts remain, 2 wrong use
`greengrad COMMAND --help` shows examples. --section.key VALUE changes a key of the configuration (rollout, eval, train, plan, replay)."""


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options of one command. `function` names what runs it, `overrides` holds the dotted keys of the configuration."""
    parser, configurable = make_parser()
    words, overrides = split_overrides(words, configurable)
    arguments = parser.parse_args(words)
    arguments.overrides = overrides
    return arguments


def split_overrides(words: Sequence[str], configurable: dict[str, Parser]) -> tuple[list[str], list[str]]:
    """Take `--key value` and `--key=value` out of the words, where the command has no such option of its own."""
    if not words or words[0] not in configurable:
        return list(words), []
    known = configurable[words[0]]._option_string_actions
    kept: list[str] = []
    overrides: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, _ = word.partition("=")
        if not name.startswith("--") or name in known:
            kept.append(word)
            continue
        overrides.append(word)
        if not equals:
            overrides += [value for value in [next(rest, None)] if value is not None]
    return kept, overrides


def make_parser() -> tuple[Parser, dict[str, Parser]]:
    """The whole parser, and those of the commands that read a configuration."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="greengrad", description=DESCRIPTION, epilog=ENDING, allow_abbrev=False, formatter_class=formatter)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)
    _doctor(commands)
    add_tasks(commands)
    configurable = {"rollout": _rollout(commands), "eval": _eval(commands), "train": _train(commands), "plan": _plan(commands)}
    configurable["replay"] = _replay(commands)
    _audit_run(commands)
    _grade(commands)
    _regrade(commands)
    _show(commands)
    _view(commands)
    _compare(commands)
    _curriculum(commands)
    _export(commands)
    _import(commands)
    _grams(commands)
    return parser, configurable


def _doctor(commands: "Commands[Parser]") -> None:
    examples = ["greengrad doctor", "greengrad doctor --clean"]
    parser = add_command(
        commands, "doctor", "doctor", "what works on this machine: sandboxes, GPUs, vLLM, DeepSpeed, disk, limits", examples
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--clean", action="store_true", help="remove sandboxes that dead processes left behind")


def _rollout(commands: "Commands[Parser]") -> Parser:
    examples = [
        "greengrad rollout configs/rollout_gold.yaml --tasks suites/small --run runs/gold",
        "greengrad rollout configs/quickstart.yaml --run runs/try --rollout.group_size 2 --tasks.limit 4",
    ]
    parser = add_command(
        commands, "rollout", "rollout", "episodes without learning, and predictions.jsonl; the same command resumes", examples
    )
    parser.add_argument("config", type=Path, metavar="CONFIG")
    parser.add_argument("--tasks", type=Path, metavar="SUITE", help="the same as --tasks.suite")
    _run(parser)
    return parser


def _eval(commands: "Commands[Parser]") -> Parser:
    examples = [
        "greengrad eval suites/small --policy gold --out runs/eval-gold",
        "greengrad eval suites/small --policy script:hostile.json --out runs/hostile -j 4",
        "greengrad eval suites/small --policy model:runs/quickstart/model --out runs/eval --split test --limit 20",
        "greengrad eval suites/small --policy http://127.0.0.1:8000 --config configs/quickstart.yaml --out runs/eval",
    ]
    parser = add_command(commands, "eval", "evaluate", "resolve rate of a policy on a suite; the same command resumes", examples)
    parser.add_argument("suite", type=Path, metavar="SUITE")
    parser.add_argument("--policy", required=True, metavar="gold|noop|script:FILE|model:DIR|URL", help="what acts")
    _out(parser)
    jobs_option(parser)
    _audit(parser)
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N tasks")
    parser.add_argument("--attempts", type=positive, default=1, metavar="N", help="episodes of each task, for pass@k (default 1)")
    parser.add_argument("--split", help="only tasks of this split")
    sandbox_option(parser)
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings of model, rollout, sandbox and policy (YAML)")
    return parser


def _train(commands: "Commands[Parser]") -> Parser:
    examples = [
        "greengrad train configs/quickstart.yaml --run runs/mine",
        "greengrad train configs/quickstart.yaml --run runs/mine --optim.lr 3e-6 --credit.kind leave_one_out",
        "greengrad train configs/nebius_stage1.yaml --run /shared/runs/stage1 --cluster auto",
    ]
    parser = add_command(commands, "train", "train", "reinforcement learning; the same command on the same run folder resumes", examples)
    parser.add_argument("config", type=Path, metavar="CONFIG")
    _run(parser)
    _cluster(parser, "on the nodes of this Ray cluster (auto: the one that this machine is in); the run folder must be seen by all")
    return parser


def _cluster(parser: Parser, help_text: str) -> None:
    parser.add_argument("--cluster", metavar="auto|ADDRESS", help=help_text)


def _plan(commands: "Commands[Parser]") -> Parser:
    examples = ["greengrad plan configs/nebius_stage1.yaml", "greengrad plan configs/quickstart.yaml --learner.ranks 2 --cluster auto"]
    parser = add_command(commands, "plan", "plan", "what would run: sizes, placement, memory, time; touches nothing", examples)
    parser.add_argument("config", type=Path, metavar="CONFIG")
    _cluster(parser, "also which node of this Ray cluster would do what")
    return parser


def _grade(commands: "Commands[Parser]") -> None:
    examples = [
        "greengrad grade suites/small --predictions preds.jsonl --out runs/graded",
        "greengrad grade suites/small --predictions trajectories/mini --out runs/graded-mini",
    ]
    parser = add_command(commands, "grade", "grade", "verdicts for patches, in fresh sandboxes; the same command resumes", examples)
    parser.add_argument("suite", type=Path, metavar="SUITE")
    help_text = "of the official harness, SWE-agent or mini-SWE-agent: .jsonl, .json, .pred, or the folder of a run"
    parser.add_argument("--predictions", type=Path, required=True, metavar="FILE", help=help_text)
    _out(parser)
    jobs_option(parser)
    _audit(parser)
    sandbox_option(parser)


def _regrade(commands: "Commands[Parser]") -> None:
    summary = "verdicts again from the saved logs of eval or grade, without sandboxes"
    parser = add_command(commands, "regrade", "regrade", summary, ["greengrad regrade runs/eval-gold"])
    parser.add_argument("folder", type=Path, metavar="DIR", help="what --out was")


def _show(commands: "Commands[Parser]") -> None:
    examples = ["greengrad show runs/mine", "greengrad show runs/mine s0-t3-e1"]
    parser = add_command(commands, "show", "show", "a run, or one of its episodes, in the terminal", examples)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("episode", nargs="?", metavar="EPISODE")


def _replay(commands: "Commands[Parser]") -> Parser:
    examples = [
        "greengrad replay runs/gold --all -j 4",
        "greengrad replay runs/mine 00003.00001.pkg__name-1.02",
        "greengrad replay runs/mine 00003.00001.pkg__name-1.02 --from-turn 3 --policy gold --out runs/forked",
    ]
    summary = "carry out recorded episodes again in fresh sandboxes and compare, or let another policy go on from a turn"
    parser = add_command(commands, "replay", "run_replay", summary, examples)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("episode", nargs="?", metavar="EPISODE")
    parser.add_argument("--all", action="store_true", help="every episode of the run")
    parser.add_argument("--from-turn", type=positive, metavar="K", help="play on from turn K (from 1); the turns before it are replayed")
    parser.add_argument(
        "--policy", metavar="gold|noop|script:FILE|model:DIR|URL", help="what plays on (default: what the run was made with)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder for the episode that plays on")
    jobs_option(parser)
    sandbox_option(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object an episode on stdout")
    parser.set_defaults(audit=None)  # the share of audited patches is the run's
    return parser


def _audit_run(commands: "Commands[Parser]") -> None:
    summary = "does the ledger of a run add up: every episode issued, finished, trained or dropped and why, each once"
    parser = add_command(commands, "audit", "run_audit", summary, ["greengrad audit runs/mine", "greengrad audit runs/mine --json"])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--json", action="store_true", help="one JSON object a journal on stdout")


def _view(commands: "Commands[Parser]") -> None:
    summary = "write a run as one self-contained web page"
    parser = add_command(commands, "view", "view", summary, ["greengrad view runs/mine --export report.html"])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--export", type=Path, metavar="FILE.html", help="where to (default RUN/report.html)")


def _compare(commands: "Commands[Parser]") -> None:
    examples = ["greengrad compare runs/base runs/trained", "greengrad compare runs/mine official.report.json --json"]
    summary = "what differs between two evaluations of the same tasks: paired bootstrap, McNemar, tasks won and lost"
    parser = add_command(commands, "compare", "compare", summary, examples)
    parser.add_argument("a", type=Path, metavar="RUN_A", help="folder of eval, grade or rollout, or a run report of the official harness")
    parser.add_argument("b", type=Path, metavar="RUN_B")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _curriculum(commands: "Commands[Parser]") -> None:
    examples = [
        "greengrad curriculum runs/stage1",
        "greengrad curriculum runs/stage1 runs/eval --out curriculum.jsonl",
        "greengrad train configs/nebius_stage2.yaml --tasks.history '[runs/stage1]'",
    ]
    summary = "how often each task was solved in runs so far, by difficulty, and which ones a second stage would keep"
    parser = add_command(commands, "curriculum", "curriculum", summary, examples)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of train, rollout, eval or grade, or a run report")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON lines: attempts, solved, running success rate, pool")


def _export(commands: "Commands[Parser]") -> None:
    examples = ["greengrad export runs/gold --format openai --out gold-chat", "greengrad export runs/eval --format sweagent --out trajs"]
    summary = "the episodes of a run for other tools, with reward and verdict: SWE-agent .traj, Harbor ATIF, OpenAI chat JSONL"
    parser = add_command(commands, "export", "export", summary, examples)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--format", choices=("sweagent", "atif", "openai"), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")


def _import(commands: "Commands[Parser]") -> None:
    examples = [
        "greengrad import SWE-bench/SWE-smith-trajectories --tasks suites/swe-smith --out runs/expert",
        "greengrad import trajs/*.traj --tasks suites/verified --out runs/expert --trust",
    ]
    summary = "other people's trajectories as a run's episodes, for rft.episodes and srl.episodes: SWE-smith, SWE-Gym, OpenAI chat, .traj"
    parser = add_command(commands, "import", "import_run", summary, examples)
    parser.add_argument(
        "sources", nargs="+", metavar="FILE", help=".parquet, .jsonl, .json or .traj, or OWNER/NAME on the Hugging Face hub"
    )
    parser.add_argument(
        "--tasks", type=Path, required=True, metavar="SUITE", help="the tasks that they are attempts at; others are left out"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new run folder")
    parser.add_argument("--action-format", choices=("fenced", "tool_json"), default="fenced", help="rollout.action_format of the training")
    parser.add_argument("--observation-chars", type=positive, default=1500, metavar="N", help="as rollout.observation_chars (default 1500)")
    parser.add_argument(
        "--trust", action="store_true", help="take as resolved what nothing says is; what is said to be unresolved stays out"
    )


def _grams(commands: "Commands[Parser]") -> None:
    examples = ["greengrad grams runs/train --out grams.txt", "greengrad train configs/hicra.yaml --planning.grams grams.txt"]
    summary = "strategic grams: phrases in which the resolved episodes of runs plan, for planning.grams (read and edit the file)"
    parser = add_command(commands, "grams", "grams", summary, examples)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new file")
    parser.add_argument("--action-format", choices=("fenced", "tool_json"), default="fenced", help="rollout.action_format of the runs")
    parser.add_argument("--seed", type=int, default=0, help="of the clusters")


def _run(parser: Parser) -> None:
    parser.add_argument("--run", type=Path, metavar="DIR", help="the run's folder (default runs/NAME, with the configuration's name)")


def _out(parser: Parser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="predictions.jsonl, report.json, logs/")


def _audit(parser: Parser) -> None:
    parser.add_argument("--audit", metavar="SHARE", help="share of the resolved patches whose tests are varied, 0 to 1 (default 1)")
