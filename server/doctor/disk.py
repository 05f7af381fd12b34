"""Checks the disk that experts are read from: free space, direct reads, speed."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from expert_store import ExpertCatalog, ExpertLayout, ExpertStoreError, FileSource, ParameterSpec, Source
from server.byte_sizes import format_bytes
from server.doctor.finding import Finding
from server.inspection.bandwidth import measure_disk, temporary_experts

PIECE_BYTES = 4 << 20  # size of a made-up expert


def check_disk(folder: Path, catalog: ExpertCatalog | None, token_bytes: int) -> Finding:
    """Measure the free space and the speed of a disk.

    Args:
        folder: folder of a model; it may not exist yet.
        catalog: the model's experts; None writes experts of random bytes to a temporary file.
        token_bytes: bytes of the experts that one token uses.
    """
    existing = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())
    space = f"{folder}: {format_bytes(shutil.disk_usage(existing).free)} free"
    try:
        with _experts(existing, catalog) as experts:
            is_direct, speed = _is_read_directly(experts.sources[0]), measure_disk(experts)
    except (OSError, ExpertStoreError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return Finding("disk", "warn", f"{space}; its speed can't be measured: {reason}")
    message = (
        f"{space}; {speed / 1e9:.2f} GB/s {'bypassing' if is_direct else 'through'} the page cache, "
        f"{1000 * token_bytes / speed:.1f} ms to read the experts of a token if none is in memory"
    )
    if not is_direct:
        advice = "no direct reads (O_DIRECT) here: put models on a local disk with ext4 or xfs, which is faster"
        return Finding("disk", "warn", message, advice)
    return Finding("disk", "ok", message)


def _is_read_directly(source: Source) -> bool:
    return isinstance(source, FileSource) and takes_direct_reads(source.path)


def takes_direct_reads(path: Path) -> bool:
    """Return True if a file can be read without the page cache."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        return False
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            os.preadv(file, [page], 0)
    except OSError:
        return False
    finally:
        os.close(file)
    return True


@contextmanager
def _experts(folder: Path, catalog: ExpertCatalog | None) -> Iterator[ExpertCatalog]:
    if catalog is not None:
        yield catalog
        return
    layout = ExpertLayout((ParameterSpec("weights", torch.uint8, (PIECE_BYTES,)),))
    with temporary_experts(layout, folder) as made_up:
        yield made_up
