"""Synthetic routing of a large model: skewed, drifting, and correlated across layers.

A trained router is a matrix applied to hidden states that change slowly along a text. This model does the same: a
latent state changes from token to token, and every layer applies its own matrix to it, so experts with similar rows are
chosen together, within and across layers. A Zipf bias makes some experts popular. At random times, the text changes its
subject and two experts of a layer swap their popularity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from expert_store.routing_log.log import LoggedLease, RoutingLog, RoutingLogHeader

LATENT = 32
STATE_WEIGHT = 1.0  # weight of the latent state, of standard deviation 1, in a logit
NOISE = 1.0  # standard deviation of per-token noise
PERSISTENCE = 0.9  # correlation of the states of successive tokens
SUBJECT_WEIGHT = 0.6
SUBJECT_TOKENS = 150  # mean number of tokens until the next subject
ZIPF = 0.5  # bias of the expert of rank r: -ZIPF * log(r)
SWAPS_PER_STEP = 0.2  # probability per layer that two experts swap their popularity


@dataclass(frozen=True)
class Shape:
    """Sizes of a synthetic model."""

    num_layers: int = 48
    num_experts: int = 128
    top_k: int = 8
    slot_bytes: int = 9 << 20


class _Texts:
    """Latent states of several streams."""

    def __init__(self, num_streams: int, rng: np.random.Generator):
        self._rng = rng
        self._subjects = rng.standard_normal((num_streams, LATENT))
        self._states = rng.standard_normal((num_streams, LATENT))

    def step(self) -> npt.NDArray[np.float64]:
        """Return the states of the next token of each stream, ``(streams, latent)``."""
        shape = self._states.shape
        changes = np.flatnonzero(self._rng.random(shape[0]) < 1 / SUBJECT_TOKENS)
        self._subjects[changes] = self._rng.standard_normal((len(changes), LATENT))
        fresh = self._rng.standard_normal(shape)
        self._states = PERSISTENCE * self._states + np.sqrt(1 - PERSISTENCE**2) * fresh
        mixed = SUBJECT_WEIGHT * self._subjects + (1 - SUBJECT_WEIGHT) * self._states
        scaled: npt.NDArray[np.float64] = mixed / np.hypot(SUBJECT_WEIGHT, 1 - SUBJECT_WEIGHT)
        return scaled


def synthetic_trace(num_steps: int, num_streams: int, seed: int, shape: Shape | None = None) -> RoutingLog:
    """Return a log of decode steps with all streams in one batch."""
    shape = shape or Shape()
    rng = np.random.default_rng(seed)
    size = (shape.num_layers, shape.num_experts)
    routers = rng.standard_normal((*size, LATENT)) / np.sqrt(LATENT)
    by_rank = -ZIPF * np.log(np.arange(1, shape.num_experts + 1))
    bias = np.stack([rng.permutation(by_rank) for _ in range(shape.num_layers)])  # (layers, experts)
    texts = _Texts(num_streams, rng)
    leases: list[LoggedLease] = []
    for _ in range(num_steps):
        for layer in np.flatnonzero(rng.random(shape.num_layers) < SWAPS_PER_STEP).tolist():
            one, other = rng.choice(shape.num_experts, 2, replace=False)
            bias[layer, [one, other]] = bias[layer, [other, one]]
        logits = np.einsum("led,sd->lse", STATE_WEIGHT * routers, texts.step()) + bias[:, None]
        logits += NOISE * rng.standard_normal(logits.shape)
        chosen = np.argpartition(-logits, shape.top_k, axis=-1)[..., : shape.top_k]  # (layers, streams, k)
        leases += [LoggedLease(row, tuple(np.unique(experts).tolist()), "decode") for row, experts in enumerate(chosen)]
    layers = range(shape.num_layers)
    header = RoutingLogHeader(
        f"synthetic-{num_streams}", dict.fromkeys(layers, shape.num_experts), dict.fromkeys(layers, shape.slot_bytes)
    )
    return RoutingLog(header, leases)


def skew(trace: RoutingLog) -> dict[str, float]:
    """Return how far routing is from uniform and independent.

    ``top_quarter`` is the share of lookups of the most popular quarter of each layer; ``repeated`` is the share of
    lookups that the previous step of the same layer had, too.
    """
    counts = {layer: np.zeros(count, np.int64) for layer, count in trace.header.layers.items()}
    last: dict[int, frozenset[int]] = {}
    repeated = 0
    for layer, experts, phase, _ in trace.leases:
        if phase == "decode":
            counts[layer][list(experts)] += 1
            repeated += len(last.get(layer, frozenset()).intersection(experts))
        last[layer] = frozenset(experts)
    lookups = sum(int(count.sum()) for count in counts.values())
    top = sum(int(np.sort(count)[::-1][: len(count) // 4].sum()) for count in counts.values())
    return {"top_quarter": round(top / lookups, 3), "repeated": round(repeated / lookups, 3)}
