"""Random model of medium size: ``python -m benchmarks.large_checkpoint FOLDER``.

A Qwen3-MoE of 1.65 billion parameters: 16 layers of 64 experts, 8 per token; 3.3 GB in bfloat16. Weights are
initialised as before training, so routing is nearly uniform. The tokenizer is the bundled model's, so prompts can be
text.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import Qwen3MoeConfig

from benchmarks.checkpoint_writer import Tensors, layer_matrices, layer_norms, write_checkpoint

CONFIG = {
    "vocab_size": 4096,
    "hidden_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 2048,
    "moe_intermediate_size": 512,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
DEVIATION = 0.02  # standard deviation of every matrix


def write_large_checkpoint(folder: Path) -> None:
    """Write the checkpoint, unless the folder has one."""
    random = torch.Generator().manual_seed(0)
    config = Qwen3MoeConfig(**CONFIG, architectures=["Qwen3MoeForCausalLM"], dtype="bfloat16")

    def matrix(_: str, rows: int, columns: int) -> torch.Tensor:
        return torch.empty((rows, columns), dtype=torch.bfloat16).normal_(std=DEVIATION, generator=random)

    def non_layer_tensors() -> Tensors:
        return {
            "model.embed_tokens.weight": matrix("embed_tokens", config.vocab_size, config.hidden_size),
            "model.norm.weight": torch.ones(config.hidden_size),
            "lm_head.weight": matrix("lm_head", config.vocab_size, config.hidden_size),
        }

    write_checkpoint(folder, config, non_layer_tensors, lambda _: layer_norms(config) | layer_matrices(config, matrix))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write")
    write_large_checkpoint(parser.parse_args().folder)


if __name__ == "__main__":
    main()
