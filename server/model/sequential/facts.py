"""SequentialFacts: the facts about a sequential model that a first pass over a sequence shows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from server.kernels.expert import ExpertsModule
from server.model.attention.kv_cache import KVGroup
from server.model.errors import ModelError
from server.model.experts.router import RouterSample
from server.model.recurrent.states import StateShapes
from server.model.step import SequenceChunk
from server.model.transformers_hooks.probe import Probe

PROBE_TOKENS = 16  # tokens of the first piece; a second piece of as many shows the bytes of each token


@dataclass(frozen=True)
class SequentialFacts:
    """The memory and the experts that a sequence takes."""

    kv_groups: tuple[KVGroup, ...]
    states: StateShapes
    routed: Mapping[ExpertsModule, RouterSample]
    top_k: int  # experts a token, of the widest layer
    vocab_size: int  # logits of a token
    writing: Collection[ExpertsModule]  # experts modules that run for each generated token


def sequential_facts(
    name: str,
    probe: Probe,
    groups_and_states: tuple[tuple[KVGroup, ...], StateShapes],
    logits: torch.Tensor,
    writing: Collection[ExpertsModule],
) -> SequentialFacts:
    """Put together the facts of a first pass.

    Raises:
        ModelError: the model's experts did not call the hooks.
    """
    if not probe.routed:
        raise ModelError(f"{name} does not use transformers' experts interface, so its experts can't be paged")
    return SequentialFacts(*groups_and_states, probe.routed, probe.top_k, logits.shape[-1], writing)


def sample_sequence(vocab_size: int, max_model_len: int) -> tuple[SequenceChunk, SequenceChunk]:
    """Return some tokens of a prompt in two pieces of the same length; the second wants logits."""
    count = max(1, min(PROBE_TOKENS, max_model_len // 2, vocab_size // 2))
    tokens = [index * (vocab_size // (2 * count)) for index in range(2 * count)]
    beginning, rest = SequenceChunk(tokens, 0, [], count, num_prompt=2 * count).split([count])
    return beginning, rest
