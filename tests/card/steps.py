"""Counts launches and synchronisations of decode steps on the card: ``python -m tests.card.steps`` prints JSON.

In steps Triton's kernels are counted and not run: but for the choice of experts no launch depends on their results.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from expert_store import ExpertKey, ExpertStore
from server.kernels.compute_pool import ComputePool
from server.model.attention.kv_cache import KVCache
from server.model.sequential.sequential_trunk import SequentialTrunk
from server.model.step import SequenceChunk
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.card import counts, triton_kernels
from tests.card.runtime import install
from tests.checkpoints import save_checkpoint
from tests.expert_store.waiting import wait_until_idle
from tests.families import make_config

CARD = torch.device("cuda", 0)
PROMPT, FEW, MANY = 3, 1, 2  # layers; the difference of both depths is the cost of a layer
BLOCKS = 4  # of a sequence
# Tiny models of three layers or four: sinks and windows, a latent, gated delta nets, Mamba-2, short convolutions, and
# an expert part beside a dense one.
FAMILIES = ("gpt_oss", "deepseek_v3", "qwen3_5_moe_text", "nemotron_h", "lfm2_moe", "gemma4_text")


def qwen3_moe(num_layers: int) -> PreTrainedConfig:
    """Return a config with 8 experts a token."""
    config = make_config("qwen3_moe")
    config.num_hidden_layers, config.num_experts, config.num_experts_per_tok = num_layers, 16, 8
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1] * num_layers
    return config


@cache
def load(folder: Path, name: str, num_layers: int, *, with_triton: bool) -> Trunk | SequentialTrunk:
    """Return a family's tiny model on the card; of a Qwen3-MoE with so many layers."""
    config = qwen3_moe(num_layers) if name == "qwen3_moe" else make_config(name)
    model = save_checkpoint(config, folder / f"{name} {num_layers} {with_triton}", torch.bfloat16)
    triton_kernels.runs = True  # as a kernel is used once it has been right
    trunk = load_trunk(model, torch.bfloat16, CARD, pool=ComputePool(1, triton_device=CARD if with_triton else None))
    triton_kernels.runs = False
    return trunk


def decode_step(
    trunk: Trunk | SequentialTrunk, num_sequences: int, num_steps: int, *, has_misses: bool = False
) -> dict[str, Counter[str]]:
    """Return the launches and synchronisations, by place, of the last step.

    All experts are on the card, or all but one of those that the last step needs of each layer; then the step is run
    three times, and what the store launches is left out, as that depends on what it finds where.
    """
    total = trunk.catalog.total_bytes
    store = ExpertStore(trunk.catalog, total, device_bytes=total, device=CARD)
    groups = trunk.facts.kv_groups
    kv_cache = KVCache(groups, [BLOCKS * num_sequences] * len(groups), 8, CARD)
    states = trunk.new_states(num_sequences)
    for layer in trunk.catalog.layers:
        with store.lease(dict.fromkeys(store._state.keys[layer], 1)) as lease:
            list(lease)
    wait_until_idle(store)
    for first, length in ((0, PROMPT), *((PROMPT + step, 1) for step in range(num_steps))):
        counts.clear()
        chunks = [
            SequenceChunk(
                [5] * length,
                first,
                [[BLOCKS * sequence + block for block in range(BLOCKS)]] * len(groups),
                slot=sequence,
            )
            for sequence in range(num_sequences)
        ]
        output = trunk.forward(chunks, kv_cache, store, states=states)
    for _ in range(3 * has_misses):
        wait_until_idle(store)
        gone = [ExpertKey(layer, int(chosen[0, 0])) for layer, chosen in output.routing.items()]
        assert store.evict(gone) == len(gone)
        counts.clear()
        output = trunk.forward(chunks, kv_cache, store, states=states)
        assert output.experts.num_misses == len(gone)
    found = {"launches": Counter(counts.launch_places), "syncs": Counter(counts.syncs)}
    if has_misses:
        found = {
            name: Counter({place: count for place, count in each.items() if "expert_store/" not in place})
            for name, each in found.items()
        }
    store.close()
    return found


def cost(
    folder: Path, num_sequences: int, num_steps: int, *, with_triton: bool = True, has_misses: bool = False
) -> dict[str, float]:
    """Return what a layer costs, and what all costs that is beside the layers."""
    few, many = (
        decode_step(
            load(folder, "qwen3_moe", layers, with_triton=with_triton), num_sequences, num_steps, has_misses=has_misses
        )
        for layers in (FEW, MANY)
    )
    result = {}
    for name in few:
        layer = (many[name].total() - few[name].total()) / (MANY - FEW)
        result[f"{name} of a layer"] = layer
        result[f"{name} beside"] = few[name].total() - FEW * layer
    return result


def cost_of_family(folder: Path, name: str) -> dict[str, int]:
    """Return what a decode step of a family's tiny model costs by Triton."""
    step = decode_step(load(folder, name, 3, with_triton=True), 1, 1)
    return {name: count.total() for name, count in step.items()}


def main() -> None:
    install()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        steps = {
            "torch, 1": cost(folder, 1, 1, with_triton=False),
            "Triton, 4": cost(folder, 4, 1),
            "graph, 4": cost(folder, 4, 3),
            "graphs and a miss in each layer, 4": cost(folder, 4, 1, has_misses=True),
        }
        print(json.dumps(steps | {name: cost_of_family(folder, name) for name in FAMILIES}))


if __name__ == "__main__":
    main()
