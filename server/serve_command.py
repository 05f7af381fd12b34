"""`greenroom serve`."""

from __future__ import annotations

import argparse
import logging
import os
import signal

import uvloop

from server.complaint import FAILURE, WRONG_USAGE, complain
from server.observability.logging import FORMS, set_up_logging
from server.settings import SettingsError, add_flags, load_settings
from server.torch_setup import set_up_torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="hub id, checkpoint or packed folder; none is the bundled model",
    )
    add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes; the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))  # until the server listens there is nothing to end
    try:
        settings = load_settings(vars(arguments), os.environ, arguments.config)
        settings.check_key_files()
    except SettingsError as error:
        return complain(error, WRONG_USAGE)
    set_up_logging(settings.log_level, FORMS[settings.log_format])
    set_up_torch(arguments.model)  # takes seconds that --help should not
    from expert_store import ExpertStoreError  # noqa: PLC0415
    from server import progress  # noqa: PLC0415
    from server.app import serve  # noqa: PLC0415
    from server.model.errors import ModelError  # noqa: PLC0415

    async def serve_and_end() -> None:
        await serve(arguments.model, settings)
        progress.clear()
        logging.shutdown()
        os._exit(0)  # a thread that still loads, downloads or reads would be waited for

    try:
        uvloop.run(serve_and_end())
    except (ModelError, ExpertStoreError, SettingsError) as error:
        return complain(error, FAILURE)
    return 0
