"""`greenroom doctor`: checks this machine and a model before serving."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator

from server.cli.exit_status import FAILURE, WRONG_USAGE, fail
from server.cli.flags import PLANNING, add_flags
from server.doctor.finding import Finding
from server.lifecycle.torch_setup import set_up_torch
from server.observability.logging import COMMAND, set_up_logging
from server.settings import ServeSettings, SettingsError, flag_name, load_settings

SETTINGS = ("host", "port", "kernels", *PLANNING)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="model to check: hub id (its weights are not downloaded), local folder, GGUF file "
        "or ollama:NAME (default: the bundled model)",
    )
    add_flags(parser, SETTINGS)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Run all checks, print them, and return the exit status."""
    try:
        settings = load_settings(vars(arguments), os.environ, arguments.config)
    except SettingsError as error:
        return fail(error, WRONG_USAGE)
    set_up_logging("error", COMMAND)
    from rich.console import Console  # noqa: PLC0415  torch takes seconds to import; --help should not wait

    from server.doctor.report import as_object, can_serve, print_finding, serve_command  # noqa: PLC0415

    console, findings = Console(highlight=False), []
    for finding in examine(arguments.model, settings):
        findings.append(finding)
        if not arguments.json:
            print_finding(console, finding)
    flags = [
        word
        for name in SETTINGS
        if name in vars(arguments)
        for word in (flag_name(name), str(getattr(arguments, name)))
    ]
    command = serve_command(arguments.model, flags, findings)
    if arguments.json:
        sys.stdout.write(json.dumps(as_object(findings, command)) + "\n")
    else:
        end = f"serve with: {command}" if can_serve(findings) else "cannot serve; fix the checks that failed"
        console.print(end, soft_wrap=True, markup=False)
    return 0 if can_serve(findings) else FAILURE


def examine(model: str | None, settings: ServeSettings) -> Iterator[Finding]:
    """Yield the findings one by one, as each check is done."""
    set_up_torch(model)
    from server.doctor import environment, memory, processor  # noqa: PLC0415
    from server.doctor.model import check_model  # noqa: PLC0415
    from server.loading.bundled_weights import with_bundled_adapters  # noqa: PLC0415
    from server.model.transformers_output import silence_transformers  # noqa: PLC0415

    settings = with_bundled_adapters(model, settings)
    silence_transformers()
    yield environment.check_versions()
    yield processor.check_cores(settings.threads)
    yield processor.check_instructions()
    yield processor.check_kernels(settings.kernels)
    yield memory.check_memory()
    yield memory.check_budget(settings)
    yield memory.check_huge_pages()
    yield memory.check_pinning()
    yield memory.check_open_files()
    yield environment.check_devices()
    yield environment.check_hub()
    yield environment.check_port(settings.host, settings.port)
    yield from check_model(model, settings)
