"""The words of `greengrad tasks ...`: commands, options, examples; knows nothing of what they do. Standard library only."""

from pathlib import Path

from .words import Commands, Parser, add_command, jobs_option, positive, sandbox_option


def add_tasks(commands: "Commands[Parser]") -> None:
    """All of `greengrad tasks`."""
    parser = commands.add_parser("tasks", help="build, list and validate suites of tasks", allow_abbrev=False)
    inner = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)

    examples = ["greengrad tasks build small --out suites/small"]
    build = add_command(inner, "build", "tasks_build", "materialise a suite from a recipe (shipped: small, medium)", examples)
    build.add_argument("recipe", metavar="RECIPE", help="name of a shipped recipe, or a YAML file, or the recipe.json of a suite")
    build.add_argument("--out", type=Path, required=True, metavar="SUITE", help="folder of the suite; the same command resumes")
    sandbox_option(build)

    _tasks_mutate(inner)
    _tasks_mine(inner)
    _tasks_list(inner)
    _tasks_export(inner)

    examples = ["greengrad tasks validate suites/small", "greengrad tasks validate suites/mined --repeats 3 -j 4 --keep suites/sound"]
    summary = (
        "gold resolves; untouched, reversed and empty do not; K runs agree, in either order -> lineage.jsonl; the same command resumes"
    )
    validate = add_command(inner, "validate", "tasks_validate", summary, examples)
    validate.add_argument("suite", type=Path, metavar="SUITE")
    validate.add_argument("--repeats", type=positive, default=1, metavar="K", help="verdicts that must be equal (default 1)")
    validate.add_argument("--keep", type=Path, metavar="OUT", help="write a suite of the sound tasks there")
    sandbox_option(validate)
    jobs_option(validate)


def _tasks_mutate(commands: "Commands[Parser]") -> None:
    examples = [
        "greengrad tasks mutate --package more-itertools==10.5.0 --out suites/itertools -n 50",
        "greengrad tasks mutate --repo ../boltons --out suites/boltons --seed 1",
        "greengrad tasks build suites/boltons/recipe.json --out suites/again      the same suite, or a changed recipe's",
    ]
    summary = "a suite of bugs planted in a package that tests notice, each proved; layout and requirements are found by looking"
    mutate = add_command(commands, "mutate", "tasks_mutate", summary, examples)
    source = mutate.add_mutually_exclusive_group(required=True)
    source.add_argument("--package", default="", metavar="NAME==VER", help="a release on the package index (NAME alone: the newest)")
    source.add_argument("--repo", type=Path, metavar="PATH", help="a folder, or a git repository, whose newest commit is taken")
    mutate.add_argument("--out", type=Path, required=True, metavar="SUITE", help="folder of the suite; the same command resumes")
    mutate.add_argument("-n", "--number", type=positive, default=20, metavar="N", help="tasks wanted (default 20)")
    mutate.add_argument("--seed", type=int, default=0, help="of the order in which bugs are tried (default 0)")
    help_text = "folder or file in which bugs are planted (default: the packages that are found; may be repeated)"
    mutate.add_argument("--modules", action="append", default=[], metavar="PATH", help=help_text)
    help_text = "folder or file that pytest is given (default: those that are found; may be repeated)"
    mutate.add_argument("--tests", action="append", default=[], metavar="PATH", help=help_text)
    help_text = "an OpenAI-compatible server that rewrites the statements; those that would tell the fix keep ours"
    mutate.add_argument("--statement-url", metavar="URL", help=help_text)
    mutate.add_argument("--statement-model", metavar="NAME", help="its model (default: the first that it names)")
    mutate.add_argument("--split", choices=("train", "test"), default="train", help="of all its tasks (default train)")
    sandbox_option(mutate)


def _tasks_mine(commands: "Commands[Parser]") -> None:
    examples = ["greengrad tasks mine --repo ../boltons --name mahmoud/boltons --out suites/mined --limit 20 -j 2"]
    summary = "a suite from the history of a Python repository: small commits that change source and tests, each proved in sandboxes"
    mine = add_command(commands, "mine", "tasks_mine", summary, examples)
    mine.add_argument("--repo", required=True, metavar="PATH_OR_URL", help="a git repository with its whole history, bare or not")
    mine.add_argument("--out", type=Path, required=True, metavar="SUITE", help="folder of the suite; the same command resumes")
    mine.add_argument("--limit", type=positive, default=50, metavar="N", help="candidate commits to try, newest first (default 50)")
    mine.add_argument("--name", default="", metavar="OWNER/NAME", help="of the repository (default: from the path or URL)")
    help_text = 'JSON lines {"commit": ID or "issue": NUMBER, "text": ...}: problem statements in place of commit messages'
    mine.add_argument("--issues", type=Path, metavar="FILE", help=help_text)
    mine.add_argument("--max-files", type=positive, default=3, metavar="N", help="source files, and test files, of a commit (default 3)")
    mine.add_argument("--max-lines", type=positive, default=80, metavar="N", help="source lines that it changes (default 80)")
    mine.add_argument("--split", choices=("train", "test"), default="train", help="of all its tasks (default train)")
    sandbox_option(mine)
    jobs_option(mine)


def _tasks_list(commands: "Commands[Parser]") -> None:
    examples = [
        "greengrad tasks list suites/small",
        "greengrad tasks list SWE-bench_Verified.parquet --repository sympy/sympy --difficulty '<15 min fix'",
        "greengrad tasks list SWE-Gym/SWE-Gym --max-files 7 --max-patch-lines 499 --decontaminate SWE-bench/SWE-bench_Verified",
    ]
    summary = "the tasks of a suite: a task repository, .jsonl, .json, .parquet, Harbor folders, or OWNER/NAME on the Hugging Face hub"
    show = add_command(commands, "list", "tasks_list", summary, examples)
    show.add_argument("suite", type=Path, metavar="SUITE")
    show.add_argument("--split", help="only this split")
    show.add_argument("--repository", action="append", default=[], metavar="OWNER/NAME", help="only this one (may be repeated)")
    show.add_argument("--language", action="append", default=[], help="only this one (may be repeated)")
    show.add_argument("--difficulty", action="append", default=[], help="only this one (may be repeated)")
    show.add_argument("--max-patch-lines", type=positive, metavar="N", help="lines that the gold patch adds and removes")
    show.add_argument("--max-files", type=positive, metavar="N", help="files that the gold patch touches")
    help_text = "leave out the repositories of this suite (may be repeated)"
    show.add_argument("--decontaminate", action="append", type=Path, default=[], metavar="SUITE", help=help_text)
    show.add_argument("--all", action="store_true", help="one line for every task, however many")


def _tasks_export(commands: "Commands[Parser]") -> None:
    examples = [
        "greengrad tasks export suites/small --format harbor --out harbor/small",
        "greengrad tasks export suites/small --format parquet --split test --out hub/small",
    ]
    summary = "a suite for other tools: Harbor task folders, or rows of SWE-bench 5 as JSONL, Parquet or a saved Hugging Face data set"
    parser = add_command(commands, "export", "tasks_export", summary, examples)
    parser.add_argument("suite", type=Path, metavar="SUITE")
    parser.add_argument("--format", choices=("harbor", "jsonl", "parquet", "hf"), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--split", help="only tasks of this split")
