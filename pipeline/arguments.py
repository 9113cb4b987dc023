"""The words of the command line: commands, options, examples; knows nothing of what they do. Standard library only."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

DESCRIPTION = "From green tests to gradients: reinforcement learning for coding agents on real repositories."
ENDING = """exit codes: 0 done, 1 the work failed or infra verdicts remain, 2 wrong use
`greengrad COMMAND --help` shows examples. --section.key VALUE changes a key of the configuration in rollout, eval, train and plan."""


class Parser(argparse.ArgumentParser):
    """argparse with the error on one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


Commands = argparse._SubParsersAction


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
    _tasks(commands)
    configurable = {"rollout": _rollout(commands), "eval": _eval(commands), "train": _train(commands), "plan": _plan(commands)}
    _grade(commands)
    _regrade(commands)
    _show(commands)
    _view(commands)
    _compare(commands)
    _curriculum(commands)
    _export(commands)
    return parser, configurable


def _command(commands: "Commands[Parser]", name: str, function: str, summary: str, examples: Sequence[str]) -> Parser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog="\n  ".join(["examples:", *examples]),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=function, command=name)
    parser.add_argument("--verbose", action="store_true", help="log more, and show where an error came from")
    return parser


def _doctor(commands: "Commands[Parser]") -> None:
    examples = ["greengrad doctor", "greengrad doctor --clean"]
    parser = _command(commands, "doctor", "doctor", "what works on this machine: sandboxes, GPUs, vLLM, DeepSpeed, disk, limits", examples)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--clean", action="store_true", help="remove sandboxes that dead processes left behind")


def _tasks(commands: "Commands[Parser]") -> None:
    parser = commands.add_parser("tasks", help="build, list and validate suites of tasks", allow_abbrev=False)
    inner = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)

    examples = ["greengrad tasks build small --out suites/small"]
    build = _command(inner, "build", "tasks_build", "materialise a suite from a recipe (shipped: small, medium)", examples)
    build.add_argument("recipe", metavar="RECIPE", help="name of a shipped recipe, or a YAML file, or the recipe.json of a suite")
    build.add_argument("--out", type=Path, required=True, metavar="SUITE", help="folder of the suite; the same command resumes")
    _sandbox(build)

    _tasks_mutate(inner)
    _tasks_mine(inner)
    _tasks_list(inner)
    _tasks_export(inner)

    examples = ["greengrad tasks validate suites/small", "greengrad tasks validate suites/mined --repeats 3 -j 4 --keep suites/sound"]
    summary = (
        "gold resolves; untouched, reversed and empty do not; K runs agree, in either order -> lineage.jsonl; the same command resumes"
    )
    validate = _command(inner, "validate", "tasks_validate", summary, examples)
    validate.add_argument("suite", type=Path, metavar="SUITE")
    validate.add_argument("--repeats", type=_positive, default=1, metavar="K", help="verdicts that must be equal (default 1)")
    validate.add_argument("--keep", type=Path, metavar="OUT", help="write a suite of the sound tasks there")
    _sandbox(validate)
    _jobs(validate)


def _tasks_mutate(commands: "Commands[Parser]") -> None:
    examples = [
        "greengrad tasks mutate --package more-itertools==10.5.0 --out suites/itertools -n 50",
        "greengrad tasks mutate --repo ../boltons --out suites/boltons --seed 1",
        "greengrad tasks build suites/boltons/recipe.json --out suites/again      the same suite, or a changed recipe's",
    ]
    summary = "a suite of bugs planted in a package that tests notice, each proved; layout and requirements are found by looking"
    mutate = _command(commands, "mutate", "tasks_mutate", summary, examples)
    source = mutate.add_mutually_exclusive_group(required=True)
    source.add_argument("--package", default="", metavar="NAME==VER", help="a release on the package index (NAME alone: the newest)")
    source.add_argument("--repo", type=Path, metavar="PATH", help="a folder, or a git repository, whose newest commit is taken")
    mutate.add_argument("--out", type=Path, required=True, metavar="SUITE", help="folder of the suite; the same command resumes")
    mutate.add_argument("-n", "--number", type=_positive, default=20, metavar="N", help="tasks wanted (default 20)")
    mutate.add_argument("--seed", type=int, default=0, help="of the order in which bugs are tried (default 0)")
    help_text = "folder or file in which bugs are planted (default: the packages that are found; may be repeated)"
    mutate.add_argument("--modules", action="append", default=[], metavar="PATH", help=help_text)
    help_text = "folder or file that pytest is given (default: those that are found; may be repeated)"
    mutate.add_argument("--tests", action="append", default=[], metavar="PATH", help=help_text)
    help_text = "an OpenAI-compatible server that rewrites the statements; those that would tell the fix keep ours"
    mutate.add_argument("--statement-url", metavar="URL", help=help_text)
    mutate.add_argument("--statement-model", metavar="NAME", help="its model (default: the first that it names)")
    mutate.add_argument("--split", choices=("train", "test"), default="train", help="of all its tasks (default train)")
    _sandbox(mutate)


def _tasks_mine(commands: "Commands[Parser]") -> None:
    examples = ["greengrad tasks mine --repo ../boltons --name mahmoud/boltons --out suites/mined --limit 20 -j 2"]
    summary = "a suite from the history of a Python repository: small commits that change source and tests, each proved in sandboxes"
    mine = _command(commands, "mine", "tasks_mine", summary, examples)
    mine.add_argument("--repo", required=True, metavar="PATH_OR_URL", help="a git repository with its whole history, bare or not")
    mine.add_argument("--out", type=Path, required=True, metavar="SUITE", help="folder of the suite; the same command resumes")
    mine.add_argument("--limit", type=_positive, default=50, metavar="N", help="candidate commits to try, newest first (default 50)")
    mine.add_argument("--name", default="", metavar="OWNER/NAME", help="of the repository (default: from the path or URL)")
    help_text = 'JSON lines {"commit": ID or "issue": NUMBER, "text": ...}: problem statements in place of commit messages'
    mine.add_argument("--issues", type=Path, metavar="FILE", help=help_text)
    mine.add_argument("--max-files", type=_positive, default=3, metavar="N", help="source files, and test files, of a commit (default 3)")
    mine.add_argument("--max-lines", type=_positive, default=80, metavar="N", help="source lines that it changes (default 80)")
    mine.add_argument("--split", choices=("train", "test"), default="train", help="of all its tasks (default train)")
    _sandbox(mine)
    _jobs(mine)


def _tasks_list(commands: "Commands[Parser]") -> None:
    examples = [
        "greengrad tasks list suites/small",
        "greengrad tasks list SWE-bench_Verified.parquet --repository sympy/sympy --difficulty '<15 min fix'",
        "greengrad tasks list SWE-Gym/SWE-Gym --max-files 7 --max-patch-lines 499 --decontaminate SWE-bench/SWE-bench_Verified",
    ]
    summary = "the tasks of a suite: a task repository, .jsonl, .json, .parquet, Harbor folders, or OWNER/NAME on the Hugging Face hub"
    show = _command(commands, "list", "tasks_list", summary, examples)
    show.add_argument("suite", type=Path, metavar="SUITE")
    show.add_argument("--split", help="only this split")
    show.add_argument("--repository", action="append", default=[], metavar="OWNER/NAME", help="only this one (may be repeated)")
    show.add_argument("--language", action="append", default=[], help="only this one (may be repeated)")
    show.add_argument("--difficulty", action="append", default=[], help="only this one (may be repeated)")
    show.add_argument("--max-patch-lines", type=_positive, metavar="N", help="lines that the gold patch adds and removes")
    show.add_argument("--max-files", type=_positive, metavar="N", help="files that the gold patch touches")
    help_text = "leave out the repositories of this suite (may be repeated)"
    show.add_argument("--decontaminate", action="append", type=Path, default=[], metavar="SUITE", help=help_text)
    show.add_argument("--all", action="store_true", help="one line for every task, however many")


def _tasks_export(commands: "Commands[Parser]") -> None:
    examples = [
        "greengrad tasks export suites/small --format harbor --out harbor/small",
        "greengrad tasks export suites/small --format parquet --split test --out hub/small",
    ]
    summary = "a suite for other tools: Harbor task folders, or rows of SWE-bench 5 as JSONL, Parquet or a saved Hugging Face data set"
    parser = _command(commands, "export", "tasks_export", summary, examples)
    parser.add_argument("suite", type=Path, metavar="SUITE")
    parser.add_argument("--format", choices=("harbor", "jsonl", "parquet", "hf"), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--split", help="only tasks of this split")


def _rollout(commands: "Commands[Parser]") -> Parser:
    examples = [
        "greengrad rollout configs/rollout_gold.yaml --tasks suites/small --run runs/gold",
        "greengrad rollout configs/quickstart.yaml --run runs/try --rollout.group_size 2 --tasks.limit 4",
    ]
    parser = _command(
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
    parser = _command(commands, "eval", "evaluate", "resolve rate of a policy on a suite; the same command resumes", examples)
    parser.add_argument("suite", type=Path, metavar="SUITE")
    parser.add_argument("--policy", required=True, metavar="gold|noop|script:FILE|model:DIR|URL", help="what acts")
    _out(parser)
    _jobs(parser)
    _audit(parser)
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N tasks")
    parser.add_argument("--attempts", type=_positive, default=1, metavar="N", help="episodes of each task, for pass@k (default 1)")
    parser.add_argument("--split", help="only tasks of this split")
    _sandbox(parser)
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings of model, rollout, sandbox and policy (YAML)")
    return parser


def _train(commands: "Commands[Parser]") -> Parser:
    examples = [
        "greengrad train configs/quickstart.yaml --run runs/mine",
        "greengrad train configs/quickstart.yaml --run runs/mine --optim.lr 3e-6 --credit.kind leave_one_out",
    ]
    parser = _command(commands, "train", "train", "reinforcement learning; the same command on the same run folder resumes", examples)
    parser.add_argument("config", type=Path, metavar="CONFIG")
    _run(parser)
    return parser


def _plan(commands: "Commands[Parser]") -> Parser:
    examples = ["greengrad plan configs/nebius_stage1.yaml", "greengrad plan configs/quickstart.yaml --learner.ranks 2"]
    parser = _command(commands, "plan", "plan", "what would run: sizes, placement, memory; touches nothing", examples)
    parser.add_argument("config", type=Path, metavar="CONFIG")
    return parser


def _grade(commands: "Commands[Parser]") -> None:
    examples = [
        "greengrad grade suites/small --predictions preds.jsonl --out runs/graded",
        "greengrad grade suites/small --predictions trajectories/mini --out runs/graded-mini",
    ]
    parser = _command(commands, "grade", "grade", "verdicts for patches, in fresh sandboxes; the same command resumes", examples)
    parser.add_argument("suite", type=Path, metavar="SUITE")
    help_text = "of the official harness, SWE-agent or mini-SWE-agent: .jsonl, .json, .pred, or the folder of a run"
    parser.add_argument("--predictions", type=Path, required=True, metavar="FILE", help=help_text)
    _out(parser)
    _jobs(parser)
    _audit(parser)
    _sandbox(parser)


def _regrade(commands: "Commands[Parser]") -> None:
    summary = "verdicts again from the saved logs of eval or grade, without sandboxes"
    parser = _command(commands, "regrade", "regrade", summary, ["greengrad regrade runs/eval-gold"])
    parser.add_argument("folder", type=Path, metavar="DIR", help="what --out was")


def _show(commands: "Commands[Parser]") -> None:
    examples = ["greengrad show runs/mine", "greengrad show runs/mine s0-t3-e1"]
    parser = _command(commands, "show", "show", "a run, or one of its episodes, in the terminal", examples)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("episode", nargs="?", metavar="EPISODE")


def _view(commands: "Commands[Parser]") -> None:
    summary = "write a run as one self-contained web page"
    parser = _command(commands, "view", "view", summary, ["greengrad view runs/mine --export report.html"])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--export", type=Path, metavar="FILE.html", help="where to (default RUN/report.html)")


def _compare(commands: "Commands[Parser]") -> None:
    examples = ["greengrad compare runs/base runs/trained", "greengrad compare runs/mine official.report.json --json"]
    summary = "what differs between two evaluations of the same tasks: paired bootstrap, McNemar, tasks won and lost"
    parser = _command(commands, "compare", "compare", summary, examples)
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
    parser = _command(commands, "curriculum", "curriculum", summary, examples)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of train, rollout, eval or grade, or a run report")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON lines: attempts, solved, running success rate, pool")


def _export(commands: "Commands[Parser]") -> None:
    examples = ["greengrad export runs/gold --format openai --out gold-chat", "greengrad export runs/eval --format sweagent --out trajs"]
    summary = "the episodes of a run for other tools, with reward and verdict: SWE-agent .traj, Harbor ATIF, OpenAI chat JSONL"
    parser = _command(commands, "export", "export", summary, examples)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--format", choices=("sweagent", "atif", "openai"), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")


def _run(parser: Parser) -> None:
    parser.add_argument("--run", type=Path, metavar="DIR", help="the run's folder (default runs/NAME, with the configuration's name)")


def _out(parser: Parser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="predictions.jsonl, report.json, logs/")


def _jobs(parser: Parser) -> None:
    parser.add_argument("-j", "--jobs", type=_positive, metavar="N", help="sandboxes at once")


def _audit(parser: Parser) -> None:
    parser.add_argument("--audit", metavar="SHARE", help="share of the resolved patches whose tests are varied, 0 to 1 (default 1)")


def _sandbox(parser: Parser) -> None:
    parser.add_argument("--sandbox", choices=("auto", "docker", "bubblewrap"), help="default: docker where a daemon answers")


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word} is not a positive number")
    return number
