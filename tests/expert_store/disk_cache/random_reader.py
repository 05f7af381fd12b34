"""A process that reads random ranges of a file through a cache, and compares them: FILE CACHE [MAX_BYTES [NUM_READS]].

It prints a line when the cache is open, and at the end the bytes that came from the cache and from the file.
"""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

import numpy as np

from expert_store.disk_cache.cached_source import CachedSource
from expert_store.disk_cache.disk_cache import DiskCache
from expert_store.sources.base import Piece
from expert_store.sources.file import FileSource

MAX_PIECE = 300_000


def main(path: str, folder: str, max_bytes: str = "0", num_reads: str = "0") -> None:
    content = np.fromfile(path, np.uint8)
    cache = DiskCache(Path(folder), int(max_bytes) or None)
    opened = CachedSource(FileSource(Path(path)), cache).open()
    print("open", flush=True)  # noqa: T201
    random = np.random.default_rng()
    for _ in range(int(num_reads)) if int(num_reads) else count():
        begins = random.integers(0, len(content), 3)
        ends = np.minimum(begins + random.integers(1, MAX_PIECE, 3), len(content))
        pieces = [Piece(int(begin), np.empty(end - begin, np.uint8)) for begin, end in zip(begins, ends, strict=True)]
        opened.read(pieces)
        for piece in pieces:
            assert np.array_equal(piece.target, content[piece.offset : piece.end]), (piece.offset, piece.end)
    cache.writer.flush()
    print(cache.hit_bytes, cache.remote_bytes, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
