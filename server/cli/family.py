"""`greenroom family`: prints what a model is, as a file of its family declares it."""

from __future__ import annotations

import argparse

from server.cli.exit_status import FAILURE, exit_on_interrupt, fail
from server.observability.logging import COMMAND, set_up_logging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="hub id (its weights are not downloaded), local folder, GGUF file or ollama:NAME",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print a declaration, and return the exit status."""
    # torch takes seconds to import; --help should not wait
    from expert_store import ExpertStoreError  # noqa: PLC0415
    from server.inspection.family import family_source  # noqa: PLC0415
    from server.model.errors import ModelError  # noqa: PLC0415

    set_up_logging("warning", COMMAND)
    try:
        with exit_on_interrupt("interrupted"):
            print(family_source(arguments.model), end="", flush=True)
    except (ModelError, ExpertStoreError, OSError) as error:
        return fail(error, FAILURE)
    return 0
