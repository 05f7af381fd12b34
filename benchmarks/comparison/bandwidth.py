"""Bandwidth of memory and disk: upper bounds for the read rates of all engines."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

MEMORY_BYTES = 1 << 30  # per thread
QUEUE_DEPTHS = (4, 8, 16)
PAGE = 4096
SOURCE = r"""
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Each thread sums its own array; reports the best of several passes. */
typedef struct { uint64_t *data; size_t count; uint64_t sum; } part;

static void *add(void *argument) {
  part *p = argument;
  uint64_t s[32] = {0};
  for (size_t i = 0; i < p->count; i += 32)
    for (int k = 0; k < 32; k++) s[k] += p->data[i + k];
  for (int k = 0; k < 32; k++) p->sum += s[k];
  return NULL;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int argc, char **argv) {
  int threads = atoi(argv[1]);
  size_t bytes = strtoull(argv[2], NULL, 10);
  part *parts = calloc(threads, sizeof *parts);
  pthread_t *ids = calloc(threads, sizeof *ids);
  for (int t = 0; t < threads; t++) {
    parts[t].data = aligned_alloc(1 << 21, bytes);
    parts[t].count = bytes / 8;
    for (size_t i = 0; i < parts[t].count; i++) parts[t].data[i] = i ^ t;
  }
  double best = 0;
  for (int pass = 0; pass < 9; pass++) {
    double start = now();
    for (int t = 0; t < threads; t++) pthread_create(&ids[t], NULL, add, &parts[t]);
    for (int t = 0; t < threads; t++) pthread_join(ids[t], NULL);
    double rate = threads * (double)bytes / (now() - start);
    if (rate > best) best = rate;
  }
  uint64_t sum = 0;
  for (int t = 0; t < threads; t++) sum += parts[t].sum;
  fprintf(stderr, "%llu\n", (unsigned long long)sum);
  printf("%f\n", best);
  return 0;
}
"""


def memory_bytes_per_second(threads: int) -> float:
    """Return the best rate of threads reading arrays larger than the caches, with a compiled loop and with numpy."""
    return max(_compiled(threads), _by_numpy(threads))


def disk_bytes_per_second(
    files: list[Path], block_bytes: int, seconds: float = 2.0, depths: Sequence[int] = QUEUE_DEPTHS
) -> float:
    """Return the best rate of direct reads of blocks at random offsets, with several numbers of threads.

    Raises:
        OSError: If the file system does not support direct I/O.
    """
    return max(_read_blocks(files, block_bytes, depth, seconds / len(depths)) for depth in depths)


def _compiled(threads: int) -> float:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return 0.0
    with tempfile.TemporaryDirectory() as name:
        source, binary = Path(name) / "read.c", Path(name) / "read"
        source.write_text(SOURCE)
        command = [compiler, "-O3", "-march=native", "-pthread", str(source), "-o", str(binary)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            return 0.0
        output = subprocess.run([binary, str(threads), str(MEMORY_BYTES)], check=True, capture_output=True).stdout
    return float(output)


def _by_numpy(threads: int) -> float:
    arrays = [np.ones(MEMORY_BYTES // 4, np.float32) for _ in range(threads)]

    def read(array: np.ndarray) -> float:
        return float(np.dot(array, array))  # releases the GIL

    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            started = time.perf_counter()
            list(pool.map(read, arrays))
            best = max(best, threads * MEMORY_BYTES / (time.perf_counter() - started))
    return best


def _read_blocks(files: list[Path], block_bytes: int, depth: int, seconds: float) -> float:
    block_bytes = -(-block_bytes // PAGE) * PAGE
    descriptors = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in files]
    sizes = [path.stat().st_size for path in files]
    usable = [index for index, size in enumerate(sizes) if size >= block_bytes]
    deadline = time.perf_counter() + seconds

    def read(seed: int) -> int:
        rng, buffer, done = random.Random(seed), mmap.mmap(-1, block_bytes), 0  # noqa: S311
        while time.perf_counter() < deadline:
            index = rng.choices(usable, [sizes[each] for each in usable])[0]
            offset = rng.randrange((sizes[index] - block_bytes) // PAGE + 1) * PAGE
            done += os.preadv(descriptors[index], [buffer], offset)
        return done

    started = time.perf_counter()
    try:
        with ThreadPoolExecutor(depth) as pool:
            total = sum(pool.map(read, range(depth)))
        return total / (time.perf_counter() - started)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
