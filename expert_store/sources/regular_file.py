"""Opens regular files of a checkpoint, and refuses others."""

from __future__ import annotations

import os
import stat
from io import FileIO
from pathlib import Path

from expert_store.errors import CheckpointError, source_error

REMEDY = "download the checkpoint again"


def open_regular(path: Path, most: int | None, remedy: str = REMEDY) -> FileIO:
    """Open a file for reading if it is a regular one; never waits for the writer of a pipe.

    Args:
        most: the largest size in bytes; None for any.
        remedy: what to do about a file that is refused, for the message.

    Raises:
        SourceError: the file can't be opened.
        CheckpointError: it is not a regular file, or is too large; the message names it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise source_error(str(path), error) from error
    status = os.fstat(descriptor)
    is_regular = stat.S_ISREG(status.st_mode)
    if is_regular and (most is None or status.st_size <= most):
        return FileIO(descriptor)
    os.close(descriptor)
    if is_regular:
        raise CheckpointError(f"{path} is {status.st_size} bytes long, more than {most}; {remedy}")
    raise CheckpointError(f"{path} is not a regular file; {remedy}")
