"""What `greenroom chat` and `greenroom top` share: where the server is, and text that is safe to show."""

from __future__ import annotations

import argparse
import os
import sys

from client.errors import APIConnectionError, APITimeoutError, AuthenticationError, GreenroomError
from client.wire import DEFAULT_URL, WireOptions

FAILURE, WRONG_USAGE = 1, 2
KIB = 1024
REPLACEMENT = ord("\N{REPLACEMENT CHARACTER}")
# Controls would steer the terminal, overrides of direction hide what is written, halves of pairs can't be printed.
BARRED = (range(0x7F, 0xA0), range(0x2028, 0x202F), range(0x2066, 0x206A), range(0xD800, 0xE000))
SHOWN_AS: dict[int, int | None] = {
    **{code: 0x2400 + code for code in range(0x20)},  # pictures of controls
    **{code: REPLACEMENT for codes in BARRED for code in codes},
    **{ord(kept): ord(kept) for kept in "\n\t"},
    ord("\r"): None,
}


def printable(text: str) -> str:
    """A server's text as it may go to a terminal."""
    return text.translate(SHOWN_AS)


def size_text(nbytes: float) -> str:
    """``3.2 GiB``."""
    if nbytes < KIB:
        return f"{nbytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        nbytes /= KIB
        if nbytes < KIB:
            return f"{nbytes:.1f} {unit}"
    return f"{nbytes / KIB:.1f} TiB"


def ratio_text(ratio: float | None) -> str:
    """``97.1 %``; nothing was routed lately where there is none."""
    return "-" if ratio is None else f"{100 * ratio:.1f} %"


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the server is; keys are better in the environment, where no list of processes shows them."""
    parser.add_argument(
        "--url",
        default=os.environ.get("GREENROOM_URL", DEFAULT_URL),
        help=f"of the server (GREENROOM_URL, or {DEFAULT_URL})",
    )
    parser.add_argument(
        "--api-key", metavar="KEY", default=os.environ.get("GREENROOM_API_KEY"), help="better as GREENROOM_API_KEY"
    )
    parser.add_argument(
        "--admin-api-key",
        metavar="KEY",
        default=os.environ.get("GREENROOM_ADMIN_API_KEY"),
        help="to see experts from another machine; better as GREENROOM_ADMIN_API_KEY",
    )


def server_of(arguments: argparse.Namespace) -> tuple[str, WireOptions]:
    """The URL, with a scheme, and the keys."""
    url = arguments.url if "://" in arguments.url else f"http://{arguments.url}"
    return url.rstrip("/"), {"api_key": arguments.api_key, "admin_api_key": arguments.admin_api_key}


def is_terminal() -> bool:
    """Whether somebody types here and reads; a stream that was closed is None."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def describe(error: GreenroomError) -> str:
    """One line that says what is wrong and what to do."""
    line = printable(" ".join(str(error).split()))
    if isinstance(error, APIConnectionError) and not isinstance(error, APITimeoutError):
        return f"{line}; start a server with `greenroom serve`, or name another with --url"
    if isinstance(error, AuthenticationError):
        return f"{line.rstrip('.')}; give it as --api-key, or as --admin-api-key for experts"
    return line


def complain(line: str, status: int) -> int:
    """Say on standard error what is wrong; gives the exit status back."""
    sys.stderr.write(f"greenroom: {line}\n")
    return status
