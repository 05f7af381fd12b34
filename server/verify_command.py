"""`greenroom verify`: read a packed model whole and compare it with its checksums."""

from __future__ import annotations

import argparse
from pathlib import Path

from server.complaint import FAILURE, complain, ending_at_once, say
from server.observability.logging import COMMAND, set_up_logging

MOST_NAMED = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pack", metavar="PACK", type=Path, help="folder that greenroom pack wrote, or a copy of one")


def run(arguments: argparse.Namespace) -> int:
    """Verify a packed model; the exit status."""
    # torch takes seconds that --help should not
    from expert_store import ExpertStoreError, is_pack, open_pack, unreadable_experts  # noqa: PLC0415
    from server.memory.sizes import format_bytes  # noqa: PLC0415
    from server.progress import progress  # noqa: PLC0415

    set_up_logging("info", COMMAND)
    folder: Path = arguments.pack
    if not folder.is_dir():
        return say(f"there is no folder {folder}; name one that greenroom pack wrote", FAILURE)
    if not is_pack(folder):
        return say(
            f"{folder} is not a packed model, and others have no checksums; name a folder that greenroom pack wrote",
            FAILURE,
        )
    try:
        with ending_at_once("interrupted"):
            catalog = open_pack(folder).catalog
            with progress(f"verifying {folder}", catalog.total_bytes) as shown:
                damaged = unreadable_experts(catalog, shown.advance)
    except (ExpertStoreError, OSError) as error:
        return complain(error, FAILURE)
    num_experts = sum(catalog.layouts.values())
    if not damaged:
        return say(f"{folder} is sound: {num_experts} experts, {format_bytes(catalog.total_bytes)}", 0)
    names = ", ".join(map(str, list(damaged)[:MOST_NAMED])) + (", ..." if len(damaged) > MOST_NAMED else "")
    first = next(iter(damaged.values()))
    return say(f"{len(damaged)} of {num_experts} experts of {folder} are damaged: {names}; the first: {first}", FAILURE)
