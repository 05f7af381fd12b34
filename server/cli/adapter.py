"""`greenroom adapter check`: reads a LoRA adapter or a mixture of some, and shows what of it a model can take."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from server.cli.exit_status import FAILURE, WRONG_USAGE, exit_on_interrupt, fail, finish
from server.cli.flags import add_flags
from server.lifecycle.torch_setup import set_up_torch
from server.model.checkpoint.local_files import check_model
from server.model.errors import ModelError
from server.observability.logging import COMMAND, set_up_logging
from server.settings import SettingsError, load_settings

SETTINGS = ("revision", "device", "dtype")
MOST_PROBLEMS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["check"], metavar="check", help="the only action")
    parser.add_argument(
        "path",
        metavar="PATH",
        type=Path,
        help="folder with adapter_config.json, written by PEFT, or with gate_config.json",
    )
    parser.add_argument(
        "--model", metavar="MODEL", help="model that the adapter is for: hub id or folder (default: the bundled model)"
    )
    add_flags(parser, SETTINGS)


def run(arguments: argparse.Namespace) -> int:
    """Check an adapter, and return the exit status."""
    try:
        settings = load_settings(vars(arguments), os.environ, arguments.config)
        check_model(arguments.model)
    except SettingsError as error:
        return fail(error, WRONG_USAGE)
    except ModelError as error:
        return fail(error, FAILURE)
    set_up_logging("warning", COMMAND)
    set_up_torch(arguments.model)  # takes seconds; --help should not wait
    from expert_store import ExpertStoreError  # noqa: PLC0415
    from server.loading.check_adapter import check_adapter, describe  # noqa: PLC0415
    from server.loading.check_gate import check_gate, describe_gate  # noqa: PLC0415
    from server.model.lora.errors import AdapterError  # noqa: PLC0415
    from server.model.lora.gate_files import is_gate  # noqa: PLC0415

    try:
        with exit_on_interrupt("interrupted"):
            if is_gate(arguments.path):
                gate = check_gate(arguments.path, arguments.model, settings)
                print(describe_gate(gate), flush=True)
                return 0 if gate.refusal is None else finish(gate.refusal, FAILURE)
            check = check_adapter(arguments.path, arguments.model, settings)
    except (AdapterError, ModelError, ExpertStoreError, SettingsError, OSError) as error:
        return fail(error, FAILURE)
    print(describe(check), flush=True)
    for problem in check.match.problems[:MOST_PROBLEMS]:
        print(f"problem: {problem}", flush=True)
    if check.refusal is not None:
        return finish(check.refusal, FAILURE)
    return 0
