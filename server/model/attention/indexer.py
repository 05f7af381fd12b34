"""Indexers of sparse attention (DeepSeek Sparse Attention), by the names of their parts.

An indexer scores the keys that a token sees, and the token attends to the best ones alone. It keeps a key of its own
for each token, which lies in the KV cache behind the latent of the token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

LINEARS = ("wq_b", "wk", "weights_proj")  # of queries, of the key, and of the heads' weights
NORM = "k_norm"
TOP_K = "index_topk"  # attribute: keys that a token attends to, at most
QUERIES, LATENTS = ("q_a_proj", "q_a_layernorm", "q_b_proj"), ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj")
AROUND = (*QUERIES, *LATENTS, "o_proj", "indexer")  # the parts of such an attention
ROPE_NORM = "k_rope_only_layernorm"
BESIDES = ("g_proj", ROPE_NORM)  # parts that it may have


def find_indexer(attention: Any) -> Any:
    """Return the indexer of a layer's attention; None if it has none of the known structure."""
    indexer = getattr(attention, "indexer", None)
    if not isinstance(indexer, nn.Module) or not isinstance(getattr(indexer, TOP_K, None), int):
        return None
    is_known = _consists_of(indexer, {*LINEARS, NORM}) and _consists_of(attention, AROUND, BESIDES)
    return indexer if is_known else None


def index_dim(attention: Any) -> int:
    """Return the numbers of a token's index key in a layer; 0 if it has no indexer."""
    indexer = find_indexer(attention)
    return 0 if indexer is None else int(indexer.wk.out_features)


def _consists_of(module: nn.Module, names: Collection[str], besides: Collection[str] = ()) -> bool:
    """Return whether a module has these parts, maybe some besides, and no parameters of its own."""
    children = {name for name, _ in module.named_children()} - set(besides)
    return children == set(names) and not [*module.parameters(recurse=False)]


@contextmanager
def few_chosen(model: nn.Module, count: int) -> Iterator[None]:
    """Have the indexers of a model choose so few keys, so that a short sequence shows which.

    Args:
        count: of keys, at most.
    """
    found = [indexer for module in model.modules() if (indexer := find_indexer(module)) is not None]
    wanted = [getattr(indexer, TOP_K) for indexer in found]
    for indexer, top_k in zip(found, wanted, strict=True):
        setattr(indexer, TOP_K, min(top_k, count))
    try:
        yield
    finally:
        for indexer, top_k in zip(found, wanted, strict=True):
            setattr(indexer, TOP_K, top_k)
