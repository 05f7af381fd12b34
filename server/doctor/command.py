"""`greenroom doctor`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator

from server.complaint import FAILURE, WRONG_USAGE, complain
from server.observability.logging import COMMAND, set_up_logging
from server.settings import PLANNING, ServeSettings, SettingsError, add_flags, flag_name, load_settings
from server.torch_setup import set_up_torch

from .finding import Finding

SETTINGS = ("host", "port", "kernels", *PLANNING)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="to be served: a hub id, of which no weights are downloaded, or a local folder; none is the bundled one",
    )
    add_flags(parser, SETTINGS)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Check everything; the exit status."""
    try:
        settings = load_settings(vars(arguments), os.environ, arguments.config)
    except SettingsError as error:
        return complain(error, WRONG_USAGE)
    set_up_logging("error", COMMAND)
    from rich.console import Console  # noqa: PLC0415  with torch, it takes seconds that --help should not

    from .report import as_object, can_serve, print_finding, serve_command  # noqa: PLC0415

    console, findings = Console(highlight=False), []
    for finding in examine(arguments.model, settings):
        findings.append(finding)
        if not arguments.json:
            print_finding(console, finding)
    given = [
        word
        for name in SETTINGS
        if name in vars(arguments)
        for word in (flag_name(name), str(getattr(arguments, name)))
    ]
    command = serve_command(arguments.model, given, findings)
    if arguments.json:
        sys.stdout.write(json.dumps(as_object(findings, command)) + "\n")
    else:
        end = f"serve with: {command}" if can_serve(findings) else "can't serve before what failed is put right"
        console.print(end, soft_wrap=True, markup=False)
    return 0 if can_serve(findings) else FAILURE


def examine(model: str | None, settings: ServeSettings) -> Iterator[Finding]:
    """One finding after the other, as they are made."""
    set_up_torch(model)
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415

    from . import memory, processor, surroundings  # noqa: PLC0415
    from .model import check_model  # noqa: PLC0415

    transformers_logging.set_verbosity_error()
    yield surroundings.check_versions()
    yield processor.check_cores(settings.threads)
    yield processor.check_instructions()
    yield processor.check_kernels(settings.kernels)
    yield memory.check_memory()
    yield memory.check_budget(settings)
    yield memory.check_huge_pages()
    yield memory.check_pinning()
    yield memory.check_open_files()
    yield surroundings.check_devices()
    yield surroundings.check_hub()
    yield surroundings.check_port(settings.host, settings.port)
    yield from check_model(model, settings)
