"""The command `greenroom`: its table of subcommands and its argument parser."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise, takewhile
from typing import Any, NoReturn

from server.cli.exit_status import (
    FAILURE,
    INTERRUPTED,
    WRONG_USAGE,
    QuickExit,
    exit_on_closed_pipe,
    finish,
    open_standard_streams,
)
from server.other_servers import explain, explain_command

NO_THREAD = "can't start new thread"  # of a RuntimeError
BEYOND_LIMITS = "the system refuses; raise the limits of this process (`ulimit -v`, `ulimit -d`, `ulimit -u`)"


@dataclass(frozen=True)
class Subcommand:
    """A module with ``add_arguments(parser)`` and ``run(arguments) -> int``, imported only when its command is run."""

    name: str
    module: str
    summary: str
    description: str


SUBCOMMANDS = (
    Subcommand("serve", "server.cli.serve", "start the server", "Serve a model over HTTP."),
    Subcommand(
        "pack",
        "server.cli.pack",
        "write a model in the packed format",
        "Write a model in the packed format, which loads experts faster. An interrupted run can be resumed.",
    ),
    Subcommand(
        "verify",
        "server.cli.verify",
        "check a packed model for damage, or any model's logits",
        "Compare a packed model with its checksums, or check a GGUF file. The exit status is 1 if any part is damaged. "
        "With --logits, compare any local model as it is served with transformers' modules, layer by layer.",
    ),
    Subcommand(
        "adapter",
        "server.cli.adapter",
        "check LoRA adapters",
        "Check LoRA adapters without a server: their files, and what of them a model can take. The exit status is 1 if "
        "one can't be served.",
    ),
    Subcommand(
        "inspect",
        "server.cli.inspect",
        "show a model's memory needs and its maximum speed here",
        "Show a model's size, the part that fits the memory budgets, and an upper bound of tokens/s on this machine.",
    ),
    Subcommand(
        "family",
        "server.cli.family",
        "print what a model is, as its family's file declares it",
        "Print the layers of a model as the source of a file that declares its family, as found on a small twin of it.",
    ),
    Subcommand(
        "doctor",
        "server.cli.doctor",
        "check this machine, and suggest flags",
        "Check CPU, memory, disk, devices, software, the port and a model. The exit status is 1 if a check fails.",
    ),
    Subcommand(
        "replay",
        "server.cli.replay",
        "compare cache policies and sizes on recorded routing",
        "Replay recorded routing against cache policies and sizes. The last row is Belady's optimum.",
    ),
    Subcommand(
        "cluster",
        "server.cli.cluster",
        "serve replicas on Ray Serve",
        "Serve replicas of a model on Ray Serve: on this machine, or on a cluster.",
    ),
    Subcommand(
        "key-digest",
        "server.cli.key_digest",
        "print the digest of an API key, for a policy file",
        "Print the digest of an API key, for a policy file. The key comes from standard input or a file, because "
        "others can see the command line.",
    ),
    Subcommand(
        "chat",
        "client.chat.command",
        "chat with a server",
        "Chat with a server, or answer one question. If the input is not a terminal, each line is a question, and the "
        "output is plain text.",
    ),
    Subcommand(
        "top",
        "client.top.command",
        "watch a server's experts live",
        "Show tiers, hit ratios, reads, requests and every expert of a server, live.",
    ),
)


class _StoreOnce(argparse.Action):
    """Stores the value of a flag, and refuses the flag if it is repeated."""

    _is_given = False

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        del parser
        if self._is_given and option_string is not None:
            raise argparse.ArgumentError(self, "it has one value, but is given more than once; give it once")
        self._is_given = True
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports wrong usage in one line."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        for name in (None, "store"):
            self.register("action", name, _StoreOnce)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str], namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        if "--config" in self._option_string_actions:  # a command with settings
            self._refuse_others(args)
        return super().parse_known_args(args, namespace)

    def _refuse_others(self, words: Sequence[str]) -> None:
        """Explain flags of other servers before argparse takes a part of one for a flag or a model."""
        before_end = takewhile(lambda word: word != "--", words)
        names = dict.fromkeys(word.partition("=")[0] for word in before_end if _is_flag(word))
        unknown = [name for name in names if name not in self._option_string_actions]
        told = [text for name in unknown if (text := explain(name)) is not None]
        if told:
            self.error("; ".join(told))

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Report unknown arguments, each with the flag that was probably meant, but no value: it may be a key."""
        flags = list(self._option_string_actions)
        words = [word for before, word in pairwise(["", *unknown]) if _is_flag(word) or not _is_flag(before)]
        names = [word.partition("=")[0] if _is_flag(word) else word for word in words]
        self.error("unrecognized arguments: " + " ".join(name + _meant(name, flags) for name in names))


def _is_flag(word: str) -> bool:
    return word.startswith("-")


def _meant(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def build_parser(words: Sequence[str]) -> _Parser:
    """Build the parser of a command line. Only the subcommand that is named gets its arguments."""
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
    """Parse a command line; exits if it is wrong."""
    parser = build_parser(words)
    names = [subcommand.name for subcommand in SUBCOMMANDS]
    if not words:
        parser.error(f"give a command: {', '.join(names)}")
    if not words[0].startswith("-") and words[0] not in names:
        parser.error(explain_command(words[0]) or f"there is no command {words[0]}{_meant(words[0], names)}")
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        arguments.refuse(unknown)
    return arguments


def main() -> None:
    """Run the command line as the only work of this process, and exit with 0, 1 for a failure, or 2 for wrong usage."""
    end = QuickExit()
    try:
        run_command()
    except SystemExit as error:
        end.with_status(error.code)
        raise


def run_command() -> NoReturn:
    """Run the command line, and exit with its status."""
    open_standard_streams()
    try:
        with exit_on_closed_pipe():
            arguments = parse(sys.argv[1:])
            sys.exit(arguments.run(arguments))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and str(error) != NO_THREAD:
            raise
        logging.getLogger(__name__).debug("%s", error, exc_info=True)
        sys.exit(finish(f"{str(error) or 'out of memory'}: {BEYOND_LIMITS}", FAILURE))
    except FileNotFoundError:
        if _has_temporary_folder():
            raise
        sys.exit(finish("no folder can hold temporary files; set TMPDIR to one that this user can write to", FAILURE))


def _has_temporary_folder() -> bool:
    try:
        return bool(tempfile.gettempdir())
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    main()
