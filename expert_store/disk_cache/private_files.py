"""Files and folders that no other user may open, as whoever opens a file can lock it."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from pathlib import Path

FOLDER_MODE, FILE_MODE = 0o700, 0o600
OF_OTHERS = 0o077  # permissions of group and others
WRITABLE = 0o022  # by group or others
OF_A_CACHE = re.compile(r"[0-9a-f]{40}\.(data|new|(about|extents|listing)(\.\d+)?)|fill\.lock")  # names of files


class RefusedFileError(OSError):
    """Another user may have made a file or a folder, or may change it."""


def make_private_folder(folder: Path) -> None:
    """Make a folder for this user alone. One that is there and has nothing but files of a cache becomes such a folder.

    Raises:
        RefusedFileError: other users can change it.
        OSError: it can't be made.
    """
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    status, user = folder.stat(), os.geteuid()
    if status.st_uid != user or folder.lstat().st_uid not in {0, user}:
        raise RefusedFileError("it belongs to another user")
    if not status.st_mode & OF_OTHERS:
        return
    is_own = not status.st_mode & stat.S_ISVTX and all(OF_A_CACHE.fullmatch(each.name) for each in folder.iterdir())
    if is_own:
        folder.chmod(FOLDER_MODE)
    elif status.st_mode & WRITABLE:
        raise RefusedFileError("other users can write to it")


def open_private(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """Open a regular file of this user, which has no other name, and take the permissions of others away.

    Raises:
        RefusedFileError: it is another kind of file, or another user can write to it.
        OSError: it can't be opened.
    """
    if path.is_symlink():
        raise RefusedFileError(f"{path} is a link; remove it")
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, FILE_MODE)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise RefusedFileError(f"{path} is not a regular file; remove it")
        if status.st_uid != os.geteuid():
            raise RefusedFileError(f"{path} belongs to another user; remove it")
        if status.st_nlink > 1:
            raise RefusedFileError(f"{path} is a file that has another name, too; remove it")
        if status.st_mode & WRITABLE:
            raise RefusedFileError(f"{path} could be changed by other users; remove it")
        if status.st_mode & OF_OTHERS:
            os.fchmod(file, FILE_MODE)
    except OSError:
        os.close(file)
        raise
    return file


def read_private(path: Path, most: int) -> bytes:
    """Return the first bytes of a file.

    Args:
        most: the largest number of bytes.

    Raises:
        OSError: there is none, or it is refused.
    """
    with os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:
        return file.read(min(most, os.fstat(file.fileno()).st_size))


def write_private(path: Path, content: bytes) -> None:
    """Replace a file by one with some bytes.

    Raises:
        OSError: the disk is full, or fails.
    """
    new = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        new.unlink()
    try:
        with os.fdopen(open_private(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(content)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
