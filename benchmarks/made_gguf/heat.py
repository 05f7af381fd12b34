"""Lengths of a router's rows, which decide how often each expert is chosen.

Hidden states are random, so the logit of an expert is normal with the length of its row as standard deviation. An
expert is chosen when its logit passes about the same threshold in all experts of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from expert_store.routing_log.log import RoutingLog, read_routing_log

TRACES = Path(__file__).parents[2] / "server/demo/traces"  # of the bundled model, one domain or chat each
BATCHED = "mixed.jsonl.gz"  # whose leases are of several streams together, so they hide how often one is chosen
LEAST_SHARE, MOST_SHARE = 1e-3, 0.45  # of tokens that choose an expert; a longer row cannot reach half of them

RowLengths = Callable[[int, int, np.random.Generator], npt.NDArray[np.float64]]  # of experts and top-k


def lognormal(sigma: float) -> RowLengths:
    """Return row lengths whose logarithm is normal with a standard deviation."""
    return lambda num_experts, _, rng: np.exp(sigma * rng.standard_normal(num_experts))


def of_traces(folder: Path = TRACES) -> RowLengths:
    """Return row lengths that give experts the shares of tokens in the routing logs of a folder.

    The sorted shares of a random layer of a random log are stretched to the number of experts, and shuffled.
    """
    paths = sorted(path for path in folder.glob("*.jsonl.gz") if path.name != BATCHED)
    layers = [shares for path in paths for shares in _sorted_shares(read_routing_log(path))]

    def lengths(num_experts: int, top_k: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        shares = layers[rng.integers(len(layers))]
        stretched = np.interp(np.linspace(0, len(shares) - 1, num_experts), np.arange(len(shares)), shares)
        chosen = np.clip(top_k * stretched / stretched.sum(), LEAST_SHARE, MOST_SHARE)
        found = np.array([1 / NormalDist().inv_cdf(1 - share) for share in chosen])
        return rng.permutation(found / np.median(found))

    return lengths


def _sorted_shares(log: RoutingLog) -> list[npt.NDArray[np.float64]]:
    """Return the shares of each layer's experts in decode steps, least first."""
    counts = {layer: np.zeros(count) for layer, count in log.header.layers.items()}
    for lease in log.leases:
        if lease.phase == "decode":
            counts[lease.layer][list(lease.experts)] += 1
    return [np.sort(count) / count.sum() for count in counts.values()]
