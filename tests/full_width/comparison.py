"""Runs a model natively, through transformers' modules in the same dtype, and through those in float32."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.overrides import TorchFunctionMode

from expert_store import ExpertStore, least_bytes
from server.kernels.compute_pool import ComputePool
from server.kernels.native.library import Kernels
from server.model.attention.kv_cache import KVCache
from server.model.checkpoint.checkpoint import Checkpoint
from server.model.program import ModelProgram
from server.model.step import SequenceChunk
from server.model.trunk_loader import load_trunk

Choices = Mapping[int, npt.NDArray[np.int64]]  # experts (tokens, k), by layer
TOKENS = [9, 5, 42, 3, 318, 77, 6, 100, 231, 12, 8, 17]  # some with massive activations
PROMPT = 9  # of them; each of the others is a step
BLOCK = 16
STEPS = [(0, PROMPT), *((token, token + 1) for token in range(PROMPT, len(TOKENS)))]
WITHOUT_CACHE = {"llama4_text"}
REFERENCE = "the reference is transformers' own"


@dataclass(frozen=True)
class Run:
    """The results of one way to run a model."""

    program: ModelProgram
    logits: torch.Tensor  # (tokens, vocabulary)
    choices: Choices
    regret: float  # see ``ForcedChoices``

    def error(self, reference: Run) -> torch.Tensor:
        """Return each token's distance from a reference, in parts of how much its logits vary."""
        spread = reference.logits - reference.logits.mean(-1, keepdim=True)
        return (self.logits - reference.logits).norm(dim=-1) / spread.norm(dim=-1)


def run_natively(checkpoint: Checkpoint, dtype: torch.dtype) -> Run:
    """Run a model as it is served on a processor."""
    kernels = Kernels(2)
    try:
        return _run(checkpoint, dtype, pool=ComputePool(1, kernels))
    finally:
        kernels.close()


def run_modules(checkpoint: Checkpoint, dtype: torch.dtype, choices: Choices) -> Run:
    """Run a model through transformers' modules, with its attention and cache, and dequantised weights.

    Llama 4 can't continue from transformers' cache; the attention of its reference is that of served modules.

    Args:
        choices: the experts that tokens go to.
    """
    has_cache = checkpoint.read_config().model_type not in WITHOUT_CACHE
    return _run(checkpoint, dtype, choices, **{"sequential_reason": REFERENCE} if has_cache else {})


class ForcedChoices(TorchFunctionMode):
    """Lets routers choose given experts: of two that are nearly equal, rounding may prefer either.

    Attributes:
        regret: how much smaller a router's number of a given expert was than that of its own choice, in parts of how
            much the token's numbers vary; the most of all tokens.
    """

    def __init__(self, choices: Choices, num_experts: int):
        super().__init__()
        self._choices, self._num_experts = [choices[layer] for layer in sorted(choices)], num_experts
        self._calls, self._tokens = 0, slice(0)
        self.regret = 0.0

    def begin(self, begin: int, end: int) -> None:
        """Begin a step with these tokens."""
        self._calls, self._tokens = 0, slice(begin, end)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace what routers find by ``topk``."""
        del types
        found = function(*args, **kwargs or {})
        if function not in (torch.topk, torch.Tensor.topk) or args[0].shape[1:] != (self._num_experts,):
            return found
        chosen = torch.from_numpy(self._choices[self._calls][self._tokens])
        self._calls += 1
        values = args[0].gather(1, chosen)
        regret = (found.values.amin(1) - values.amin(1)).float() / args[0].float().clamp_min(-100).std(1)
        self.regret = max(self.regret, float(regret.amax()))
        return torch.return_types.topk((values, chosen))


@torch.inference_mode()
def _run(checkpoint: Checkpoint, dtype: torch.dtype, choices: Choices | None = None, **options: Any) -> Run:
    trunk = load_trunk(checkpoint, dtype, max_model_len=64, **options)
    store = ExpertStore(trunk.catalog, least_bytes(trunk.catalog, trunk.facts.top_k + 1))
    forced = None if choices is None else ForcedChoices(choices, trunk.catalog.num_experts)
    groups = trunk.facts.kv_groups
    cache, states, blocks = KVCache(groups, [1] * len(groups), BLOCK), trunk.new_states(1), [[0]] * len(groups)
    logits, routing = [], []
    for begin, end in STEPS:
        chunk = SequenceChunk(TOKENS[begin:end], begin, blocks, end - begin, num_prompt=PROMPT)
        if forced is not None:
            forced.begin(begin, end)
        with forced or nullcontext():
            output = trunk.forward([chunk], cache, store, None, states)
        logits.append(output.logits.clone())
        routing.append({layer: np.array(chosen) for layer, chosen in output.routing.items()})
    store.close()
    found = {layer: np.concatenate([each[layer] for each in routing]) for layer in routing[0]}
    regret = 0.0 if forced is None else forced.regret
    return Run(trunk.facts.program, torch.cat(logits), found, regret)
