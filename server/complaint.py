"""How a command ends when something is wrong."""

from __future__ import annotations

import sys

FAILURE, WRONG_USAGE = 1, 2


def complain(error: Exception, status: int) -> int:
    """Say in one line on standard error what is wrong; gives the exit status back."""
    line = " ".join(str(error).split())
    sys.stderr.write(f"greenroom: {line}\n")
    return status
