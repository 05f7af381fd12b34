"""The command `greenroom`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn

from server.complaint import INTERRUPTED, WRONG_USAGE


@dataclass(frozen=True)
class Subcommand:
    """A module with ``add_arguments(parser)`` and ``run(arguments) -> int``, imported only when it is asked for."""

    name: str
    module: str
    summary: str
    description: str


SUBCOMMANDS = (
    Subcommand("serve", "server.serve_command", "start the server", "Serve a model over HTTP."),
    Subcommand(
        "pack",
        "server.pack_command",
        "write a model in the packed format",
        "Write a model in the packed format, one aligned record an expert; resumable.",
    ),
    Subcommand(
        "verify",
        "server.verify_command",
        "compare a packed model with its checksums",
        "Read a packed model whole and compare it with its checksums; 1 if anything of it is damaged.",
    ),
    Subcommand(
        "inspect",
        "server.inspect_command",
        "what a model takes, what fits, and how fast it can be",
        "Tell what a model takes in bytes, what of it fits the budgets, and the most tokens/s it can give here.",
    ),
    Subcommand(
        "doctor",
        "server.doctor.command",
        "what of this machine matters for serving, and what to set",
        "Check processor, memory, disk, devices, software and port, and whether a model fits; 1 if it can't be served.",
    ),
    Subcommand(
        "replay",
        "server.replay.command",
        "compare cache policies and sizes on recorded routing",
        "Replay recorded routing against cache policies and sizes; the last row is Belady's optimum.",
    ),
    Subcommand(
        "chat",
        "client.chat.command",
        "talk to a server",
        "Talk to a server; where the input is no terminal, each line is a question and the output is plain.",
    ),
    Subcommand(
        "top",
        "client.top.command",
        "watch a server's experts",
        "Watch tiers, hit ratios, reads, requests, and every expert of a server.",
    ),
)


class _Parser(argparse.ArgumentParser):
    """One line for wrong usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Name arguments that there are not, each with the flag that was perhaps meant."""
        flags = list(self._option_string_actions)
        self.error(
            "unrecognized arguments: " + " ".join(word + _meant(word.partition("=")[0], flags) for word in unknown)
        )


def _meant(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def build_parser(words: Sequence[str]) -> _Parser:
    """The parser of a command line: of its subcommands, only the one that is named has its arguments."""
    parser = _Parser(
        prog="greenroom", description="Serve Mixture-of-Experts models larger than memory.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"greenroom {version('greenroom')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for subcommand in SUBCOMMANDS:
        subparser = commands.add_parser(
            subcommand.name, help=subcommand.summary, description=subcommand.description, allow_abbrev=False
        )
        if subcommand.name in words[:1]:
            module = import_module(subcommand.module)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run, refuse=subparser.refuse)
    return parser


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Arguments of a command line; exits if there are no such."""
    parser = build_parser(words)
    names = [subcommand.name for subcommand in SUBCOMMANDS]
    if not words:
        parser.error(f"name a command: {', '.join(names)}")
    if not words[0].startswith("-") and words[0] not in names:
        parser.error(f"there is no command {words[0]}{_meant(words[0], names)}")
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        arguments.refuse(unknown)
    return arguments


def main() -> None:
    """Run the command line; exits with 0, 1 for a failure, 2 for wrong usage."""
    try:
        arguments = parse(sys.argv[1:])
        sys.exit(arguments.run(arguments))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
