"""Files that were read in ranges become files of the hub's cache, as its own library lays it out."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path

from expert_store import CheckpointError, FileName
from server.model.checkpoint.download import keep_reference
from server.model.checkpoint.hub_answers import EntityTag, Sha256
from server.model.checkpoint.hub_listing import Listing, repository_folder

OF_FILES = 0o666  # permissions of a file, where its folder has them


def keep_file(listing: Listing, path: FileName, complete: Path, version: str) -> None:
    """Move a complete file into the cache; once it is there, the hub's library takes it as downloaded.

    Args:
        path: in the repository.
        version: the file's checksum, or else its ETag.

    Raises:
        CheckpointError: its bytes are not those that the hub has, or the version is none that names files of the cache.
        OSError: the disk is full, or fails.
    """
    try:
        tag = EntityTag.of_header(version)
    except ValueError as error:
        raise CheckpointError(f"the hub tells neither a checksum nor an ETag of {path}: {error}") from error
    folder = repository_folder(listing.model)
    blob = folder / "blobs" / tag
    if not blob.exists():
        if Sha256.GRAMMAR.fullmatch(tag):
            with complete.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != tag:
                    raise CheckpointError(f"the bytes of {path} are not those that the hub has")
        blob.parent.mkdir(parents=True, exist_ok=True)
        _move(complete, blob)
        blob.chmod(blob.parent.stat().st_mode & OF_FILES)  # the folder's users read it, as files that were downloaded
    keep_reference(listing)
    pointer = folder / "snapshots" / listing.commit / path
    pointer.parent.mkdir(parents=True, exist_ok=True)
    if not pointer.exists():
        pointer.unlink(missing_ok=True)
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))


def _move(file: Path, target: Path) -> None:
    try:
        file.replace(target)
    except FileNotFoundError:
        if not target.exists():  # another process has moved it
            raise
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = target.with_suffix(".copied")
        shutil.copyfile(file, copy)
        copy.replace(target)
