"""The command `greenroom`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from importlib.metadata import version
from typing import NoReturn

from server import pack_command
from server.settings import ServeSettings, SettingsError, add_flags, load_settings


class _Parser(argparse.ArgumentParser):
    """One line for wrong usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="greenroom", description="Serve Mixture-of-Experts models larger than memory.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"greenroom {version('greenroom')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve", help="start the server", description="Serve a model over HTTP.", allow_abbrev=False
    )
    serve.add_argument(
        "model", nargs="?", metavar="MODEL", help="hub id or local checkpoint folder; none is the bundled model"
    )
    add_flags(serve)
    pack = commands.add_parser(
        "pack",
        help="write a model in the packed format",
        description="Write a model in the packed format, one record an expert; resumable.",
        allow_abbrev=False,
    )
    pack_command.add_arguments(pack)
    return parser


def main() -> None:
    """Run the command line; exits with 0, 1 for a failure, 2 for wrong usage."""
    arguments = build_parser().parse_args()
    if arguments.command == "pack":
        sys.exit(pack_command.run(arguments))
    flags = vars(arguments)
    try:
        settings = load_settings(flags, os.environ, flags["config"])
    except SettingsError as error:
        sys.exit(_complain(error, 2))
    logging.basicConfig(
        level=settings.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        sys.exit(_serve(flags["model"], settings))
    except KeyboardInterrupt:  # Ctrl-C, before the server was up or once everything has ended
        sys.exit(0)


def _serve(model: str | None, settings: ServeSettings) -> int:
    # Before torch is imported: threads that spin while they wait take the cores from those that compute.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from expert_store import ExpertStoreError  # noqa: PLC0415  torch takes seconds that --help should not
    from server.app import serve  # noqa: PLC0415
    from server.model.errors import ModelError  # noqa: PLC0415

    try:
        asyncio.run(serve(model, settings))
    except (ModelError, ExpertStoreError, SettingsError) as error:
        return _complain(error, 1)
    return 0


def _complain(error: Exception, status: int) -> int:
    line = " ".join(str(error).split())
    print(f"greenroom: {line}", file=sys.stderr)
    return status
