"""Compares a model as it is served with transformers' modules, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from expert_store import ExpertStore, least_bytes
from server.kernels.native.available import OFF
from server.loading.load_model import load_checkpoint, open_model
from server.model.attention.kv_cache import KVCache
from server.model.errors import ModelError
from server.model.step import HostLogits, SequenceChunk
from server.model.transformers_output import silence_transformers
from server.model.trunk.trunk import Trunk
from server.settings import ServeSettings

MOST_TOKENS = 64
BLOCK = 16  # tokens
TEXT = (
    "A mixture of experts has many networks side by side, and a router that sends each token to a few of them. "
    "The rest of the model is shared: attention, norms and embeddings are the same for all tokens."
)


@dataclass(frozen=True)
class LogitsComparison:
    """The differences of a text's numbers from those of transformers' modules."""

    num_tokens: int
    by_layer: Sequence[tuple[str, float]]  # name of the mixer, and the relative error of the residual stream
    logits: float  # largest difference, relative to their range
    num_same: int  # tokens after which the most likely token is the same

    def as_text(self) -> str:
        """Return lines for people."""
        width = max(len(name) for name, _ in self.by_layer)
        lines = [f"layer {i:3}  {name:{width}}  {error:.1e}" for i, (name, error) in enumerate(self.by_layer)]
        lines.append(f"logits: {self.logits:.1e} of their range at most")
        lines.append(f"the most likely token is the same after {self.num_same} of {self.num_tokens} tokens")
        return "\n".join(lines)

    def as_object(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""
        return {
            "tokens": self.num_tokens,
            "layers": [{"mixer": name, "relative_error": error} for name, error in self.by_layer],
            "logits_relative_error": self.logits,
            "same_top_token": self.num_same,
        }


def compare_logits(model: str | None, settings: ServeSettings) -> LogitsComparison:
    """Run a text through a model as it is served, and through transformers' modules in the same dtype.

    Both read experts from the checkpoint, as few at a time as a step needs.

    Raises:
        ModelError, ExpertStoreError: the model can't be served, or runs through the modules alone.
        SettingsError: a setting does not suit the model or the machine.
    """
    silence_transformers()
    checkpoint, name = open_model(model, settings)
    own = load_checkpoint(checkpoint, name, settings)
    if not isinstance(own.trunk, Trunk) or not own.trunk.facts.program.has_native:
        raise ModelError(f"{name} has nothing to compare: {own.trunk.facts.program.describe()}")
    spread = own.trunk.vocab_size // MOST_TOKENS
    tokens = own.tokenizer.encode(TEXT)[:MOST_TOKENS] or range(0, MOST_TOKENS * spread, max(1, spread))
    dtype = str(own.trunk.dtype).removeprefix("torch.")
    modules = load_checkpoint(checkpoint, name, settings.model_copy(update={"kernels": OFF, "dtype": dtype})).trunk
    if not isinstance(modules, Trunk):
        raise ModelError(f"{name} has nothing to be compared with: {modules.facts.program.describe()}")
    (found, logits), (wanted, expected) = (_run(trunk, tokens) for trunk in (own.trunk, modules))
    errors = [float((one - other).norm() / other.norm()) for one, other in zip(found, wanted, strict=True)]
    layers = own.trunk.facts.program.layers
    names = [layers[index * len(layers) // len(errors)].name for index in range(len(errors))]
    return LogitsComparison(
        len(tokens),
        [*zip(names, errors, strict=True)],
        float((logits - expected).abs().max() / (expected.max() - expected.min())),
        int((logits.argmax(1) == expected.argmax(1)).sum()),
    )


def _run(trunk: Trunk, tokens: Sequence[int]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the residual stream after each layer and the logits of all tokens, float32."""
    num_blocks, groups = -(-len(tokens) // BLOCK), trunk.facts.kv_groups
    store = ExpertStore(trunk.catalog, least_bytes(trunk.catalog, trunk.facts.top_k))
    hidden: list[torch.Tensor] = []
    chunk = SequenceChunk(tokens, 0, [range(num_blocks)] * len(groups), len(tokens), num_prompt=len(tokens))
    try:
        with trunk.watch_layers(lambda _, rows: hidden.append(rows)):
            cache = KVCache(groups, [num_blocks] * len(groups), BLOCK)
            logits = trunk.forward([chunk], cache, store, None, trunk.new_states(1)).logits
        return hidden, (logits.tensor() if isinstance(logits, HostLogits) else logits).float().clone()
    finally:
        store.close()
