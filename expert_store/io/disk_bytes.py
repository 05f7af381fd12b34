"""The bytes that a file takes on its disk: fewer than its length while it is filled in any order."""

from __future__ import annotations

from pathlib import Path

BLOCK_BYTES = 512  # the unit of st_blocks


def disk_bytes(path: Path) -> int:
    """Return the bytes of a file on its disk; 0 if it is a link or not there, or was renamed just now."""
    try:
        return path.lstat().st_blocks * BLOCK_BYTES
    except OSError:
        return 0
