"""`greenroom inspect`: memory needs of a model, the part that fits, and an upper bound of its speed."""

from __future__ import annotations

import argparse
import json

from server.cli.exit_status import FAILURE, WRONG_USAGE, fail, finish
from server.cli.flags import PLANNING, add_flags
from server.cli.model_settings import load_model_settings
from server.collection import without_collection
from server.lifecycle.torch_setup import set_up_torch
from server.model.errors import ModelError
from server.observability.logging import COMMAND, set_up_logging
from server.settings import SettingsError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="model to inspect: hub id (its weights are not downloaded), local folder, GGUF file "
        "or ollama:NAME (default: the bundled model)",
    )
    add_flags(parser, PLANNING)
    parser.add_argument(
        "--bandwidth",
        metavar="RATE",
        help="predict the first token and the complete download over a link of so many bits a second: 1Gbit",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Inspect a model, print the report, and return the exit status: 1 if `greenroom serve` would refuse the model."""
    settings = load_model_settings(arguments)
    if isinstance(settings, int):
        return settings
    set_up_logging("warning", COMMAND)
    set_up_torch(None)  # without images; it takes seconds, for which --help should not wait
    from expert_store import ExpertStoreError  # noqa: PLC0415
    from server.inspection.download_time import parse_rate  # noqa: PLC0415
    from server.inspection.inspect_model import inspect_model  # noqa: PLC0415
    from server.inspection.report import as_text  # noqa: PLC0415
    from server.loading.bundled_weights import with_bundled_adapters  # noqa: PLC0415

    try:
        link = None if arguments.bandwidth is None else parse_rate(arguments.bandwidth)
    except ValueError as error:
        return fail(ValueError(f"--bandwidth {error}"), WRONG_USAGE)
    try:
        with without_collection():
            report = inspect_model(arguments.model, with_bundled_adapters(arguments.model, settings), link)
    except (ModelError, ExpertStoreError, SettingsError, OSError) as error:
        return fail(error, FAILURE)
    print(json.dumps(report) if arguments.json else as_text(report), flush=True)
    return 0 if report["refusal"] is None else finish(report["refusal"], FAILURE)
