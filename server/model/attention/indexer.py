"""Indexers of sparse attention, by the names of their parts.

An indexer scores the keys that a token sees, and the token attends to the best ones alone (DeepSeek Sparse Attention),
or to the blocks that hold the best ones (MiniMax M3). It keeps a key of its own for each token in the KV cache.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

LINEARS = ("wq_b", "wk", "weights_proj")  # of queries, of the key, and of the heads' weights
NORM = "k_norm"
TOP_K = "index_topk"  # attribute: keys that a token attends to, at most
QUERIES, LATENTS = ("q_a_proj", "q_a_layernorm", "q_b_proj"), ("kv_a_proj_with_mqa", "kv_a_layernorm")
AROUND = ("kv_b_proj", "o_proj", "indexer")  # the parts of such an attention
ROPE_NORM = "k_rope_only_layernorm"
BESIDES = ("g_proj", "gate_proj", ROPE_NORM)  # parts that it may have
SINKS = "sinks"  # a parameter that it may have
POOL, TAIL = "index_kpool", "index_kpool_always_select_tail"  # attributes: tokens of a pool; whether its own is taken
POOL_GATE, POOL_BIAS = "index_kpool_compress_gate", "index_kpool_compress_ape"  # parameters of an indexer with pools
HEAD_SCALES = "softmax_scaling"  # of queries, by head and position
INPUT_NORM = "q_input_norm"  # of the attention's rows, which an indexer's queries take then
GATED_QUERIES = ("q_a_proj", "q_a_layernorm", "q_gate_proj")
KINDS = (  # the parts of an attention, those that it may have, and those of its indexer besides the usual ones
    ((*QUERIES, *LATENTS, *AROUND), BESIDES, ()),
    ((*GATED_QUERIES, *LATENTS, *AROUND), (), ()),
    (("q_proj", HEAD_SCALES, *AROUND), LATENTS, (INPUT_NORM, HEAD_SCALES)),
)
BLOCK_PARTS = ("q_proj", "k_proj", "q_norm", "k_norm")  # of an indexer that chooses blocks of keys
BLOCK_SIZE, TOP_BLOCKS, LOCAL_BLOCKS = "block_size", "topk_blocks", "local_blocks"  # its attributes
ALL = 1 << 30  # more blocks than there are
POOL_PARTS = ("index_qk_proj", "q_layernorm", "k_layernorm")  # of an indexer that chooses pools of keys for all heads
POOL_HEADS, POOL_SIZE, TOP_POOLS = "index_n_heads", "compress_ratio", "block_topk"  # its attributes
SMALL_POOL = 2  # tokens of one in a short sequence
POOL_BUDGET = "token_budget"  # the product of the latter two


def find_indexer(attention: Any) -> Any:
    """Return the indexer of a layer's attention; None if it has none of the known structure."""
    indexer = getattr(attention, "indexer", None)
    if not isinstance(indexer, nn.Module) or not isinstance(getattr(indexer, TOP_K, None), int):
        return None
    pools = {POOL_GATE, POOL_BIAS} if pool_of(indexer) and getattr(indexer, TAIL, False) else {SINKS}
    is_known = any(
        _consists_of(attention, parts, besides) and _consists_of(indexer, {*LINEARS, NORM, *more}, own=pools)
        for parts, besides, more in KINDS
    )
    return indexer if is_known else None


def pool_of(indexer: Any) -> int:
    """Return the tokens whose keys an indexer, or the config of one, takes together; 0 if it scores each key."""
    return int(getattr(indexer, POOL, 0))


def find_key_block_indexer(attention: Any) -> Any:
    """Return the indexer of a layer's attention that chooses blocks of keys; None if it has none."""
    indexer = getattr(attention, "indexer", None)
    if not isinstance(indexer, nn.Module):
        return None
    counts = [getattr(indexer, name, None) for name in (BLOCK_SIZE, TOP_BLOCKS, LOCAL_BLOCKS)]
    is_known = all(isinstance(count, int) for count in counts) and _consists_of(indexer, BLOCK_PARTS)
    return indexer if is_known else None


def find_pool_indexer(attention: Any) -> Any:
    """Return the indexer of a layer's attention that chooses pools of keys for all heads; None if it has none."""
    indexer = getattr(attention, "indexer", None)
    if not isinstance(indexer, nn.Module):
        return None
    counts = [getattr(indexer, name, None) for name in (POOL_HEADS, POOL_SIZE, TOP_POOLS, POOL_BUDGET)]
    is_known = all(isinstance(count, int) for count in counts) and _consists_of(indexer, POOL_PARTS, own=())
    return indexer if is_known else None


def few_pools(indexer: Any, count: int) -> tuple[int, int]:
    """Return the tokens of a pool, and the chosen pools, of an indexer that chooses so few keys (``few_chosen``)."""
    size = min(SMALL_POOL, getattr(indexer, POOL_SIZE))
    return size, min(getattr(indexer, TOP_POOLS), max(1, count // size))


def index_dim(attention: Any) -> int:
    """Return the numbers of a token's index key in a layer, and of gates of pools; 0 if it has no indexer."""
    indexer = find_indexer(attention)
    return 0 if indexer is None else int(indexer.wk.out_features) * (2 if pool_of(indexer) else 1)


def _consists_of(
    module: nn.Module, names: Collection[str], besides: Collection[str] = (), own: Collection[str] = (SINKS,)
) -> bool:
    """Return whether a module has these parts, maybe some besides, and no parameters of its own but those given."""
    children = {name for name, _ in module.named_children()} - set(besides)
    return children == set(names) and {name for name, _ in module.named_parameters(recurse=False)} <= set(own)


@contextmanager
def few_chosen(model: nn.Module, count: int) -> Iterator[None]:
    """Have the indexers of a model choose so few keys, so that a short sequence shows which.

    Those that choose blocks rank single keys and choose all of them, which shows the scores; those that choose pools
    have smaller ones.

    Args:
        count: of keys, at most.
    """
    changes: list[tuple[Any, str, int]] = []
    for module in model.modules():
        if (indexer := find_indexer(module)) is not None:
            changes.append((indexer, TOP_K, min(getattr(indexer, TOP_K), max(count, pool_of(indexer)))))
        if (indexer := find_key_block_indexer(module)) is not None:
            changes += [(indexer, BLOCK_SIZE, 1), (indexer, TOP_BLOCKS, ALL)]
        if (indexer := find_pool_indexer(module)) is not None:
            size, top_k = few_pools(indexer, count)
            changes += [(indexer, POOL_SIZE, size), (indexer, TOP_POOLS, top_k), (indexer, POOL_BUDGET, size * top_k)]
    wanted = [getattr(indexer, name) for indexer, name, _ in changes]
    for indexer, name, value in changes:
        setattr(indexer, name, value)
    try:
        yield
    finally:
        for (indexer, name, _), value in zip(changes, wanted, strict=True):
            setattr(indexer, name, value)
