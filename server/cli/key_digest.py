"""`greenroom key-digest`: prints the digests of API keys."""

from __future__ import annotations

import argparse
import sys
from getpass import getpass
from pathlib import Path

from server.api.core.access.api_keys import digest_of
from server.cli.exit_status import FAILURE, finish
from server.setting_values import check_key


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", type=Path, nargs="?", help="file with keys, one per line (default: standard input)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print a digest for each key, and return the exit status."""
    try:
        keys = [line.strip() for line in _read(arguments.file).splitlines() if line.strip()]
        for key in keys:
            check_key(key)
    except OSError as error:
        return finish(f"{arguments.file}: {error.strerror}", FAILURE)
    except ValueError:
        return finish("each line must be a key of visible ASCII characters", FAILURE)
    if not keys:
        return finish("there is no key; give one on standard input, or a file with one per line", FAILURE)
    for key in keys:
        print(digest_of(key))
    return 0


def _read(file: Path | None) -> str:
    if file is not None:
        return file.read_text("utf-8")
    return getpass("API key: ") if sys.stdin.isatty() else sys.stdin.read()
