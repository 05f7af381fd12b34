"""`greenroom adapter check`: reads a LoRA adapter, and shows what of it a model can take."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from server.cli.exit_status import FAILURE, WRONG_USAGE, exit_on_interrupt, fail, finish
from server.cli.flags import add_flags
from server.lifecycle.torch_setup import set_up_torch
from server.observability.logging import COMMAND, set_up_logging
from server.settings import SettingsError, load_settings

SETTINGS = ("revision", "device", "dtype")
MOST_PROBLEMS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["check"], metavar="check", help="the only action")
    parser.add_argument("path", metavar="PATH", type=Path, help="folder with adapter_config.json, written by PEFT")
    parser.add_argument(
        "--model", metavar="MODEL", help="model that the adapter is for: hub id or folder (default: the bundled model)"
    )
    add_flags(parser, SETTINGS)


def run(arguments: argparse.Namespace) -> int:
    """Check an adapter, and return the exit status."""
    try:
        settings = load_settings(vars(arguments), os.environ, arguments.config)
    except SettingsError as error:
        return fail(error, WRONG_USAGE)
    set_up_logging("warning", COMMAND)
    set_up_torch(arguments.model)  # takes seconds; --help should not wait
    from expert_store import ExpertStoreError  # noqa: PLC0415
    from server.loading.check_adapter import check_adapter, describe  # noqa: PLC0415
    from server.model.errors import ModelError  # noqa: PLC0415
    from server.model.lora.errors import AdapterError  # noqa: PLC0415

    try:
        with exit_on_interrupt("interrupted"):
            check = check_adapter(arguments.path, arguments.model, settings)
    except (AdapterError, ModelError, ExpertStoreError, SettingsError, OSError) as error:
        return fail(error, FAILURE)
    print(describe(check), flush=True)
    for problem in check.match.problems[:MOST_PROBLEMS]:
        print(f"problem: {problem}", flush=True)
    if check.refusal is not None:
        return finish(check.refusal, FAILURE)
    return 0
