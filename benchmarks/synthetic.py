"""Made-up routing of a large model: skewed, drifting, and alike from layer to layer.

A trained router is a matrix on hidden states that change slowly along a text. So is this one: a latent state moves on
from token to token, every layer has its own matrix on it (experts that like the same state are chosen together, in one
layer and across layers), a Zipf bias makes some experts popular, and every so often the text changes its subject and
the popularity of some experts is swapped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from expert_store.trace import Trace, TracedLease, TraceHeader

LATENT = 32
STATE_WEIGHT = 1.0  # of the latent state in a logit, whose own spread is 1
NOISE = 1.0  # what is only of this token
PERSISTENCE = 0.9  # of the state from one token to the next
SUBJECT_WEIGHT = 0.6
SUBJECT_TOKENS = 150  # until the next subject, in the mean
ZIPF = 0.5  # bias of the expert of rank r: -ZIPF * log(r)
SWAPS_A_STEP = 0.2  # of the popularity of two experts of a layer, in each layer


@dataclass(frozen=True)
class Shape:
    """Sizes of a made-up model."""

    num_layers: int = 48
    num_experts: int = 128
    top_k: int = 8
    slot_bytes: int = 9 << 20


class _Texts:
    """The latent states of some streams."""

    def __init__(self, num_streams: int, rng: np.random.Generator):
        self._rng = rng
        self._subjects = rng.standard_normal((num_streams, LATENT))
        self._states = rng.standard_normal((num_streams, LATENT))

    def step(self) -> npt.NDArray[np.float64]:
        """States ``(streams, latent)`` of the next token of each."""
        shape = self._states.shape
        changes = np.flatnonzero(self._rng.random(shape[0]) < 1 / SUBJECT_TOKENS)
        self._subjects[changes] = self._rng.standard_normal((len(changes), LATENT))
        fresh = self._rng.standard_normal(shape)
        self._states = PERSISTENCE * self._states + np.sqrt(1 - PERSISTENCE**2) * fresh
        mixed = SUBJECT_WEIGHT * self._subjects + (1 - SUBJECT_WEIGHT) * self._states
        scaled: npt.NDArray[np.float64] = mixed / np.hypot(SUBJECT_WEIGHT, 1 - SUBJECT_WEIGHT)
        return scaled


def synthetic_trace(num_steps: int, num_streams: int, seed: int, shape: Shape | None = None) -> Trace:
    """Decode steps of some streams in one batch."""
    shape = shape or Shape()
    rng = np.random.default_rng(seed)
    size = (shape.num_layers, shape.num_experts)
    routers = rng.standard_normal((*size, LATENT)) / np.sqrt(LATENT)
    by_rank = -ZIPF * np.log(np.arange(1, shape.num_experts + 1))
    bias = np.stack([rng.permutation(by_rank) for _ in range(shape.num_layers)])  # (layers, experts)
    texts = _Texts(num_streams, rng)
    leases: list[TracedLease] = []
    for _ in range(num_steps):
        for layer in np.flatnonzero(rng.random(shape.num_layers) < SWAPS_A_STEP).tolist():
            one, other = rng.choice(shape.num_experts, 2, replace=False)
            bias[layer, [one, other]] = bias[layer, [other, one]]
        logits = np.einsum("led,sd->lse", STATE_WEIGHT * routers, texts.step()) + bias[:, None]
        logits += NOISE * rng.standard_normal(logits.shape)
        chosen = np.argpartition(-logits, shape.top_k, axis=-1)[..., : shape.top_k]  # (layers, streams, k)
        leases += [TracedLease(row, tuple(np.unique(experts).tolist()), "decode") for row, experts in enumerate(chosen)]
    layers = range(shape.num_layers)
    header = TraceHeader(
        f"synthetic-{num_streams}", dict.fromkeys(layers, shape.num_experts), dict.fromkeys(layers, shape.slot_bytes)
    )
    return Trace(header, leases)


def skew(trace: Trace) -> dict[str, float]:
    """How unlike chance the routing of a trace is.

    ``top_quarter``: part of the look-ups that go to the most popular quarter of each layer. ``repeated``: part of them
    that the same layer's last step asked for as well.
    """
    counts = {layer: np.zeros(count, np.int64) for layer, count in trace.header.layers.items()}
    last: dict[int, frozenset[int]] = {}
    repeated = 0
    for layer, experts, phase in trace.leases:
        if phase == "decode":
            counts[layer][list(experts)] += 1
            repeated += len(last.get(layer, frozenset()).intersection(experts))
        last[layer] = frozenset(experts)
    lookups = sum(int(count.sum()) for count in counts.values())
    top = sum(int(np.sort(count)[::-1][: len(count) // 4].sum()) for count in counts.values())
    return {"top_quarter": round(top / lookups, 3), "repeated": round(repeated / lookups, 3)}
