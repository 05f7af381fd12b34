"""Measures how far logits in bfloat16 are from those of transformers in float32, family by family.

    python -m tests.family_divergence [FAMILY ...] [--wide]

Each line has the mean Kullback-Leibler divergence, in nats, of Greenroom and of stock transformers in bfloat16 from
transformers in float32, over all positions of random texts, and the ratio of the two; then the same of the median,
which does not change with the few positions where rounding chooses another expert. The checkpoints are random, in
bfloat16; ``--wide`` takes the sizes of ``benchmarks.families`` with a hidden size of 256 instead of the tiny ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

from benchmarks.families import COMMON
from benchmarks.families import FAMILIES as MEASURED
from expert_store import ExpertStore
from server.kernels.compute_pool import ComputePool
from server.kernels.native.library import Kernels
from server.model.attention.kv_cache import KVCache
from server.model.step import SequenceChunk
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import load_transformers_model, save_checkpoint
from tests.families import make_config
from tests.native_families import NATIVE_FAMILIES

BLOCK_SIZE = 16
TEXTS, TOKENS = 16, 64
HEAD = (
    "| family | mean: Greenroom | transformers | ratio | median: Greenroom | transformers | ratio |\n|"
    + " --- |" * 7
    + "\n"
)
WIDE = {"vocab_size": 1024, "hidden_size": 256, "max_position_embeddings": 256}


@dataclass(frozen=True)
class Divergence:
    """Divergences from float32 at each position, in nats, float64 ``(positions,)``."""

    ours: torch.Tensor
    stock: torch.Tensor

    def __str__(self) -> str:
        cells = []
        for ours, stock in ((self.ours.mean(), self.stock.mean()), (self.ours.median(), self.stock.median())):
            cells += [f"{ours:.1e}", f"{stock:.1e}", f"{ours / stock:.2f}"]
        return " | ".join(cells)


def random_texts(config: PreTrainedConfig, seed: int = 0) -> torch.Tensor:
    """Return token ids ``(texts, tokens)``, without those that stand for something else, such as an image."""
    parts = {**config.to_dict(), **config.get_text_config().to_dict()}
    special = {value for name, value in parts.items() if name.endswith(("token_id", "token_index"))}
    ids = torch.tensor([token for token in range(3, config.get_text_config().vocab_size) if token not in special])
    return ids[torch.randint(len(ids), (TEXTS, TOKENS), generator=torch.Generator().manual_seed(seed))]


def divergence(folder: Path, texts: torch.Tensor) -> Divergence:
    """Compare a checkpoint's logits at every position of texts ``(texts, tokens)``."""
    reference = stock_logits(folder, texts, torch.float32)
    ours, stock = native_logits(folder, texts), stock_logits(folder, texts, torch.bfloat16)
    return Divergence(divergences(reference, ours), divergences(reference, stock))


def divergences(reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return KL(reference || logits) at each position, of logits ``(positions, vocabulary)``."""
    expected, actual = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    return (expected.exp() * (expected - actual)).sum(-1)


def stock_logits(folder: Path, texts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return transformers' logits of texts that are computed one by one, ``(positions, vocabulary)``."""
    model = load_transformers_model(folder, dtype)
    # Llama 4 around its text ends in an error in transformers 5.25; the text has a head of its own
    decoder = model.get_decoder() if hasattr(model.get_decoder(), "lm_head") else model
    with torch.inference_mode():
        return torch.cat([decoder(text[None], use_cache=False).logits[0] for text in texts])


def native_logits(folder: Path, texts: torch.Tensor) -> torch.Tensor:
    """Return Greenroom's logits in bfloat16 of texts that are computed in one step, ``(positions, vocabulary)``."""
    kernels = Kernels(2)
    trunk = load_trunk(folder, torch.bfloat16, pool=ComputePool(2, kernels))
    assert isinstance(trunk, Trunk)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    try:
        blocks, groups = -(-texts.shape[1] // BLOCK_SIZE), trunk.facts.kv_groups
        cache = KVCache(groups, [blocks * len(texts)] * len(groups), BLOCK_SIZE)
        chunks = [
            SequenceChunk(
                text, 0, [[*range(slot * blocks, (slot + 1) * blocks)]] * len(groups), num_logits=len(text), slot=slot
            )
            for slot, text in enumerate(texts.tolist())
        ]
        return trunk.forward(chunks, cache, store, None, trunk.new_states(len(texts))).logits.clone()
    finally:
        store.close()
        kernels.close()


def wide_config(name: str) -> PreTrainedConfig:
    """Return the config of one of ``benchmarks.families``, narrower."""
    family = MEASURED[name]
    return CONFIG_MAPPING[family.model_type](**COMMON | dict(family.fields) | WIDE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    known = [name for name, family in MEASURED.items() if not family.is_mxfp4] if options.wide else NATIVE_FAMILIES
    sys.stdout.write(HEAD)
    for name in options.families or known:
        config = wide_config(name) if options.wide else make_config(name)
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(config, Path(folder), torch.bfloat16)
            found = divergence(Path(folder), random_texts(config, options.seed))
        sys.stdout.write(f"| {name} | {found} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
