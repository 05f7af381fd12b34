"""`greenroom inspect`: what a model takes, what of it fits, and how fast it can be at best."""

from __future__ import annotations

import argparse
import json
import os

from server.complaint import FAILURE, WRONG_USAGE, complain
from server.observability.logging import COMMAND, set_up_logging
from server.settings import PLANNING, SettingsError, add_flags, load_settings
from server.torch_setup import set_up_torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="hub id, of which no weights are downloaded, or a local folder; none is the bundled model",
    )
    add_flags(parser, PLANNING)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Inspect a model; the exit status."""
    try:
        settings = load_settings(vars(arguments), os.environ, arguments.config)
    except SettingsError as error:
        return complain(error, WRONG_USAGE)
    set_up_logging("warning", COMMAND)
    set_up_torch(arguments.model)  # takes seconds that --help should not
    from expert_store import ExpertStoreError  # noqa: PLC0415
    from server.inspection.inspect import inspect  # noqa: PLC0415
    from server.inspection.report import as_text  # noqa: PLC0415
    from server.model.errors import ModelError  # noqa: PLC0415

    try:
        report = inspect(arguments.model, settings)
    except (ModelError, ExpertStoreError, SettingsError, OSError) as error:
        return complain(error, FAILURE)
    print(json.dumps(report) if arguments.json else as_text(report))
    return 0
