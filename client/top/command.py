"""`greenroom top`."""

from __future__ import annotations

import argparse
import asyncio
import time
from itertools import islice

import httpx
from rich.console import Console

from client.async_client import AsyncClient
from client.errors import GreenroomError
from client.retries import Retries
from client.sync_client import Client
from client.terminal import FAILURE, WRONG_USAGE, add_server_arguments, complain, describe, is_terminal, server_of
from client.top.monitor import Monitor
from client.wire import WireOptions

CONNECT_SECONDS = 5.0
PATIENCE_SECONDS = 10.0  # beyond the interval, until a server that says nothing counts as gone
NUM_LINES = 32  # of one frame that goes into a pipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_arguments(parser)
    parser.add_argument(
        "--interval", type=seconds, default=0.5, metavar="SECONDS", help="from frame to frame, 0.1 to 60 (0.5)"
    )
    parser.add_argument("--once", action="store_true", help="print one frame and end; needs no terminal")


def seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 60:  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"{text} is not between 0.1 and 60")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Show a server's experts; the exit status."""
    if not (arguments.once or is_terminal()):
        return complain("top needs a terminal: --once prints one frame without", WRONG_USAGE)
    url, options = server_of(arguments)
    options["timeout"] = httpx.Timeout(arguments.interval + PATIENCE_SECONDS, connect=CONNECT_SECONDS)
    show = show_once if arguments.once else show_live
    try:
        show(url, options, arguments.interval)
    except ValueError as error:
        return complain(str(error), WRONG_USAGE)
    except GreenroomError as error:
        return complain(describe(error), FAILURE)
    except OSError as error:
        return complain(f"the picture can't be written: {error.strerror}", FAILURE)
    return 0


def show_once(url: str, options: WireOptions, interval: float) -> None:
    """Print a frame; rates need two, so it takes an interval."""
    console, monitor = Console(highlight=False), Monitor(url)
    with Client(url, **options) as client:
        for frame in islice(client.watch_experts(interval), 2):
            monitor.take(frame, time.monotonic())
    console.print(monitor.picture(console.height if console.is_terminal else NUM_LINES))


def show_live(url: str, options: WireOptions, interval: float) -> None:
    async def show() -> None:
        options["retries"] = Retries(0)  # it comes back by itself, and says meanwhile what is wrong
        async with AsyncClient(url, **options) as client:
            await watch(client, interval, Monitor(url, "p pauses, q quits"))

    from client.top.live import watch  # noqa: PLC0415  of POSIX terminals, which --once does not need

    asyncio.run(show())
