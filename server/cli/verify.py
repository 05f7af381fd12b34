"""`greenroom verify`: reads a packed model and compares it with its checksums."""

from __future__ import annotations

import argparse
from pathlib import Path

from server.cli.exit_status import FAILURE, exit_on_interrupt, fail, finish
from server.observability.logging import COMMAND, set_up_logging

MOST_NAMED = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pack", metavar="PACK", type=Path, help="folder written by greenroom pack, or a copy of it")


def run(arguments: argparse.Namespace) -> int:
    """Verify a packed model, and return the exit status."""
    # torch takes seconds to import; --help should not wait
    from expert_store import ExpertStoreError, is_pack, open_pack, unreadable_experts  # noqa: PLC0415
    from server.byte_sizes import format_bytes  # noqa: PLC0415
    from server.progress import progress  # noqa: PLC0415

    set_up_logging("info", COMMAND)
    folder: Path = arguments.pack
    try:
        if not folder.is_dir():
            return finish(f"there is no folder {folder}; give one written by greenroom pack", FAILURE)
        next(folder.iterdir(), None)
    except OSError as error:
        return finish(f"{folder} can't be read: {error.strerror}; check its permissions (ls -ld)", FAILURE)
    if not is_pack(folder):
        return finish(
            f"{folder} is not a packed model, and has no checksums; give a folder written by greenroom pack",
            FAILURE,
        )
    try:
        with exit_on_interrupt("interrupted"):
            catalog = open_pack(folder).catalog
            with progress(f"verifying {folder}", catalog.total_bytes) as shown:
                damaged = unreadable_experts(catalog, shown.advance)
    except (ExpertStoreError, OSError) as error:
        return fail(error, FAILURE)
    num_experts = sum(catalog.layouts.values())
    if not damaged:
        return finish(f"{folder} is undamaged: {num_experts} experts, {format_bytes(catalog.total_bytes)}", 0)
    names = ", ".join(map(str, list(damaged)[:MOST_NAMED])) + (", ..." if len(damaged) > MOST_NAMED else "")
    first = next(iter(damaged.values()))
    return finish(
        f"{len(damaged)} of {num_experts} experts of {folder} are damaged: {names}; the first: {first}", FAILURE
    )
