"""Writes Greenroom's logits of one sequence: ``run_greenroom.py MODEL --logits IDS.json OUT.npy [--one-by-one]``.

MODEL is a folder or a GGUF file.

Run it in the folder of the checkout to measure, which is put first on ``sys.path``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path.cwd()))

from expert_store import ExpertStore
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import choose_level
from server.kernels.native.library import Kernels
from server.model.attention.kv_cache import KVCache
from server.model.dtype import compute_dtype
from server.model.opening.open_checkpoint import open_checkpoint
from server.model.step import SequenceChunk
from server.model.trunk_loader import load_trunk

BLOCK_SIZE = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--logits", nargs=2, type=Path, required=True)
    parser.add_argument("--one-by-one", action="store_true")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--dtype", default="auto", help="as in greenroom serve")
    parser.add_argument("--kernels", default="auto", help="as in greenroom serve")
    options = parser.parse_args()
    ids = json.loads(options.logits[0].read_text())
    cpu = torch.device("cpu")
    level = choose_level(options.kernels)
    dtype = compute_dtype(options.dtype, open_checkpoint(options.model).read_config(), cpu, is_native=level is not None)
    pool = ComputePool(options.threads, None if level is None else Kernels(options.threads, level))
    trunk = load_trunk(options.model, dtype, cpu, is_deterministic=options.deterministic, pool=pool)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    blocks = -(-len(ids) // BLOCK_SIZE)
    cache = KVCache(trunk.facts.kv_groups, [blocks] * len(trunk.facts.kv_groups), BLOCK_SIZE)
    states = trunk.new_states(1)
    table = [list(range(blocks))] * len(trunk.facts.kv_groups)
    rows, size = [], 1 if options.one_by_one else len(ids)
    for start in range(0, len(ids), size):
        piece = ids[start : start + size]
        chunk = SequenceChunk(piece, start, table, len(piece), num_prompt=len(ids))
        rows.append(trunk.forward([chunk], cache, store, None, states).logits.float())
    np.save(options.logits[1], torch.cat(rows).numpy())
    store.close()


if __name__ == "__main__":
    main()
