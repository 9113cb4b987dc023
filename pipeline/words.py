"""What the commands of the command line share: the parser, how a command is made, common options. Standard library only."""

import argparse
from collections.abc import Sequence
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse with the error on one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


Commands = argparse._SubParsersAction


def add_command(commands: "Commands[Parser]", name: str, function: str, summary: str, examples: Sequence[str]) -> Parser:
    """A command with its help, its examples and --verbose; `function` names what runs it."""
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


def jobs_option(parser: Parser) -> None:
    """-j N."""
    parser.add_argument("-j", "--jobs", type=positive, metavar="N", help="sandboxes at once")


def sandbox_option(parser: Parser) -> None:
    """--sandbox."""
    parser.add_argument("--sandbox", choices=("auto", "docker", "bubblewrap"), help="default: docker where a daemon answers")


def positive(word: str) -> int:
    """A number of at least 1."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word} is not a positive number")
    return number
