"""`greenroom serve`: starts the server."""

from __future__ import annotations

import argparse
import logging
import os
import signal

import uvloop

from server.cli.exit_status import FAILURE, WRONG_USAGE, fail
from server.cli.flags import add_all_flags
from server.lifecycle.signals import ignore_signals
from server.lifecycle.torch_setup import set_up_torch
from server.model.checkpoint.local_files import check_model
from server.model.errors import ModelError
from server.observability.logging import FORMATTERS, set_up_logging
from server.other_servers import explain_variables
from server.setting_variables import MODEL_VARIABLE, unknown_variables
from server.settings import ServeSettings, SettingsError, load_settings

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="hub id, folder of a checkpoint or a pack, GGUF file, OWNER/NAME:TAG of a GGUF file on the hub, "
        "ollama:NAME, or the address of a folder or a GGUF file on a web server or in object storage (s3://, gs://, "
        "az://) (default: that of GREENROOM_MODEL, or the bundled model)",
    )
    add_all_flags(parser)
    parser.usage = "%(prog)s [MODEL] [FLAG ...]"


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes, and return the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))  # nothing to clean up until the server listens
    ignore_signals()
    model = arguments.model or os.environ.get(MODEL_VARIABLE)
    try:
        settings = load_settings(vars(arguments), os.environ, arguments.config)
        settings.check_keys()
        check_model(model)
    except SettingsError as error:
        return fail(error, WRONG_USAGE)
    except ModelError as error:
        return fail(error, FAILURE)
    set_up_logging(settings.log_level, FORMATTERS[settings.log_format])
    unknown = unknown_variables(ServeSettings.model_fields, os.environ)
    for told in (*explain_variables(os.environ), *unknown):
        log.warning("%s, and the variable has no effect", told)
    set_up_torch(model)  # takes seconds; --help should not wait
    from expert_store import ExpertStoreError  # noqa: PLC0415
    from server import progress  # noqa: PLC0415
    from server.lifecycle.serving import serve  # noqa: PLC0415

    async def serve_and_end() -> None:
        await serve(model, settings)
        progress.clear()
        logging.shutdown()
        os._exit(0)  # Python would wait for threads that still load, download or read

    try:
        uvloop.run(serve_and_end())
    except (ModelError, ExpertStoreError, SettingsError) as error:
        return fail(error, FAILURE)
    return 0
