"""The command `greenroom top`."""

from __future__ import annotations

import argparse
import asyncio
import time
from itertools import islice

import httpx
from rich.console import Console

from client.async_client import AsyncClient
from client.config import ClientOptions
from client.errors import GreenroomError
from client.retries import Retries
from client.sync_client import Client
from client.terminal import (
    FAILURE,
    WRONG_USAGE,
    add_server_arguments,
    error_line,
    is_terminal,
    report_error,
    server_from,
)
from client.top.monitor import Monitor, has_requests
from client.top.weights_table import Weights

CONNECT_SECONDS = 5.0
STREAM_TIMEOUT_SECONDS = 10.0  # added to the interval, after which a silent server is disconnected
HINT = "p pauses, q quits"
NUM_LINES = 32  # height of a frame if the output is not a terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_arguments(parser)
    parser.add_argument(
        "--interval", type=seconds, default=0.5, metavar="SECONDS", help="update interval, 0.1 to 60 (default: 0.5)"
    )
    parser.add_argument(
        "--view",
        choices=("experts", "weights"),
        default="experts",
        help="what is shown at first: the experts, or the expert variants and LoRA adapters (default: experts)",
    )
    parser.add_argument("--once", action="store_true", help="print one frame and exit; works without a terminal")


def seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 60:  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"{text} is not between 0.1 and 60")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Show a server's experts, or its variants and adapters. Return the exit status."""
    if not (arguments.once or is_terminal()):
        return report_error("top needs a terminal; use --once to print one frame", WRONG_USAGE)
    url, options = server_from(arguments)
    options["timeout"] = httpx.Timeout(arguments.interval + STREAM_TIMEOUT_SECONDS, connect=CONNECT_SECONDS)
    show = show_once if arguments.once else show_live
    try:
        show(url, options, arguments.interval, arguments.view == "weights")
    except ValueError as error:
        return report_error(str(error), WRONG_USAGE)
    except GreenroomError as error:
        return report_error(error_line(error), FAILURE)
    except OSError as error:
        return report_error(f"cannot write the output: {error.strerror}", FAILURE)
    return 0


def show_once(url: str, options: ClientOptions, interval: float, shows_weights: bool) -> None:
    """Print one frame. Rates need two frames, so this takes one interval."""
    console, monitor = Console(highlight=False), Monitor(url, shows_weights=shows_weights)
    with Client(url, **options) as client:
        for frame in islice(client.watch_experts(interval), 2):
            requests = client.requests() if has_requests(frame) else []
            weights = Weights(client.variants(), client.adapters()) if shows_weights else None
            monitor.add_frame(frame, time.monotonic(), requests, weights)
    console.print(monitor.render(console.height if console.is_terminal else NUM_LINES))


def show_live(url: str, options: ClientOptions, interval: float, shows_weights: bool) -> None:
    async def show() -> None:
        options["retries"] = Retries(0)  # the view reconnects by itself and shows the error
        async with AsyncClient(url, **options) as client:
            await watch(client, interval, Monitor(url, HINT, shows_weights=shows_weights))

    from client.top.live import watch  # noqa: PLC0415  requires a POSIX terminal, unlike --once

    asyncio.run(show())
