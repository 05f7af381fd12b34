"""Helpers of `greenroom chat` and `greenroom top`: server arguments, safe terminal text, error lines."""

from __future__ import annotations

import argparse
import os
import sys

from client.config import DEFAULT_URL, ClientOptions
from client.errors import APIConnectionError, APITimeoutError, AuthenticationError, GreenroomError

FAILURE, WRONG_USAGE = 1, 2
KIB = 1024
REPLACEMENT = ord("\N{REPLACEMENT CHARACTER}")
# C1 controls steer the terminal, bidirectional overrides hide text, lone surrogates cannot be encoded.
UNPRINTABLE = (range(0x7F, 0xA0), range(0x2028, 0x202F), range(0x2066, 0x206A), range(0xD800, 0xE000))
REPLACEMENTS: dict[int, int | None] = {
    **{code: 0x2400 + code for code in range(0x20)},  # symbols for C0 controls
    **{code: REPLACEMENT for codes in UNPRINTABLE for code in codes},
    **{ord(kept): ord(kept) for kept in "\n\t"},
    ord("\r"): None,
}


def printable(text: str) -> str:
    """Replace characters of a server's text that are unsafe on a terminal."""
    return text.translate(REPLACEMENTS)


def size_text(nbytes: float) -> str:
    """Format bytes, such as ``3.2 GiB``."""
    if nbytes < KIB:
        return f"{nbytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        nbytes /= KIB
        if nbytes < KIB:
            return f"{nbytes:.1f} {unit}"
    return f"{nbytes / KIB:.1f} TiB"


def ratio_text(ratio: float | None) -> str:
    """Format a ratio, such as ``97.1 %``; ``-`` if it is unknown."""
    return "-" if ratio is None else f"{100 * ratio:.1f} %"


def hit_ratio_text(ratio: float | None, optimal: float | None) -> str:
    """Format a hit ratio and the optimal one, such as ``hit ratio 97.1 % (optimal 98.0 %)``.

    Optimal replacement reads on demand. Prefetched experts count as hits, so that prefetching may exceed it.
    """
    is_above = ratio is not None and optimal is not None and ratio > optimal
    if is_above and ratio_text(ratio) != ratio_text(optimal):
        return f"hit ratio {ratio_text(ratio)} (without prefetch at most {ratio_text(optimal)})"
    return f"hit ratio {ratio_text(ratio)} (optimal {ratio_text(optimal)})"


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the URL and keys of the server. Keys are safer in the environment, which process lists do not show."""
    parser.add_argument(
        "--url",
        default=os.environ.get("GREENROOM_URL", DEFAULT_URL),
        help=f"URL of the server (default: $GREENROOM_URL or {DEFAULT_URL})",
    )
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        default=os.environ.get("GREENROOM_API_KEY"),
        help="API key (default: $GREENROOM_API_KEY, which process lists do not show)",
    )
    parser.add_argument(
        "--admin-api-key",
        metavar="KEY",
        default=os.environ.get("GREENROOM_ADMIN_API_KEY"),
        help="admin key, to see experts from another machine (default: $GREENROOM_ADMIN_API_KEY)",
    )


def server_from(arguments: argparse.Namespace) -> tuple[str, ClientOptions]:
    """Return the URL, with a scheme, and the keys."""
    url = arguments.url if "://" in arguments.url else f"http://{arguments.url}"
    return url.rstrip("/"), {"api_key": arguments.api_key, "admin_api_key": arguments.admin_api_key}


def is_terminal() -> bool:
    """Return True if input and output are terminals; a closed stream is None."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def error_line(error: GreenroomError) -> str:
    """Return one line that says what is wrong and what to do."""
    line = printable(" ".join(str(error).split()))
    if isinstance(error, APIConnectionError) and not isinstance(error, APITimeoutError):
        return f"{line}; start a server with `greenroom serve`, or set another address with --url"
    if isinstance(error, AuthenticationError):
        return f"{line.rstrip('.')}; set --api-key, or --admin-api-key for experts"
    return line


def report_error(line: str, status: int) -> int:
    """Write an error line to standard error and return the exit status."""
    sys.stderr.write(f"greenroom: {line}\n")
    return status
