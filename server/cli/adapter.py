"""`greenroom adapter check`: reads LoRA adapters and mixtures of some, and shows what of them a model can take."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from server.cli.exit_status import FAILURE, exit_on_interrupt, fail, finish
from server.cli.flags import add_flags
from server.cli.model_settings import load_model_settings
from server.lifecycle.torch_setup import set_up_torch
from server.model.errors import ModelError
from server.observability.logging import COMMAND, set_up_logging
from server.settings import SettingsError

if TYPE_CHECKING:
    from server.loading.load_model import ModelParts

SETTINGS = ("revision", "device", "dtype")
MOST_PROBLEMS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["check"], metavar="check", help="the only action")
    parser.add_argument(
        "path",
        nargs="+",
        metavar="PATH",
        type=Path,
        help="folder with adapter_config.json, written by PEFT, or with gate_config.json, or a folder of such folders",
    )
    parser.add_argument(
        "--model", metavar="MODEL", help="model that the adapter is for: hub id or folder (default: the bundled model)"
    )
    add_flags(parser, SETTINGS)


def run(arguments: argparse.Namespace) -> int:
    """Check adapters, and return the exit status."""
    settings = load_model_settings(arguments)
    if isinstance(settings, int):
        return settings
    set_up_logging("warning", COMMAND)
    set_up_torch(None)  # without images; it takes seconds, for which --help should not wait
    from expert_store import ExpertStoreError  # noqa: PLC0415
    from server.loading.check_adapter import load_quietly  # noqa: PLC0415

    @cache
    def load() -> ModelParts:
        try:
            return load_quietly(arguments.model, settings)
        except (ExpertStoreError, OSError) as error:
            raise ModelError(str(error)) from error  # of no adapter, whose files raise the same errors

    try:
        with exit_on_interrupt("interrupted"):
            return _check_all(_expand(arguments.path), load)
    except (ModelError, SettingsError, OSError) as error:
        return fail(error, FAILURE)


def _expand(paths: Sequence[Path]) -> list[Path]:
    """Return the paths, with the adapters in a folder in its place."""
    from server.weights.adapter_folders import find_adapters, is_adapter  # noqa: PLC0415

    found = list[Path]()
    for path in paths:
        inside = find_adapters(path) if path.is_dir() and not is_adapter(path) else []
        found += [path / each for each in inside] or [path]
    return found


def _check_all(paths: Sequence[Path], load: Callable[[], ModelParts]) -> int:
    """Check each adapter, and return the exit status."""
    from expert_store import ExpertStoreError  # noqa: PLC0415
    from server.model.adapters.errors import AdapterError  # noqa: PLC0415

    num_refused = 0
    for number, path in enumerate(paths):
        if number:
            print(flush=True)
        try:
            refusal = _check(path, load)
        except (AdapterError, ExpertStoreError, OSError) as error:
            refusal = str(error)
        if refusal is not None:
            num_refused += 1
            finish(" ".join(refusal.split()), FAILURE)
    if len(paths) > 1:
        print(f"\n{len(paths) - num_refused} of {len(paths)} adapters can be served", flush=True)
    return FAILURE if num_refused else 0


def _check(path: Path, load: Callable[[], ModelParts]) -> str | None:
    """Print what a model makes of an adapter or a mixture; return why it is refused, or None."""
    from server.loading.check_adapter import check_adapter, describe  # noqa: PLC0415
    from server.loading.check_gate import check_gate, describe_gate  # noqa: PLC0415
    from server.model.lora.gate_files import is_gate  # noqa: PLC0415

    if is_gate(path):
        gate = check_gate(path, load)
        print(describe_gate(gate), flush=True)
        return gate.refusal
    check = check_adapter(path, load)
    print(describe(check), flush=True)
    for problem in check.match.problems[:MOST_PROBLEMS]:
        print(f"problem: {problem}", flush=True)
    return check.refusal
