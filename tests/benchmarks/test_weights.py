"""Weight bytes read by a step, from file headers."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.comparison.weights import CacheSizes, Weights, gguf_sizes, weights_of

CONFIG = {"num_experts": 2, "num_experts_per_tok": 1, "num_hidden_layers": 1}


def gguf_string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def write_gguf(path: Path, tensors: dict[str, int]) -> None:
    """Write a GGUF file of tensors with arbitrary types; sizes are multiples of the alignment."""
    fields = gguf_string("a.list") + struct.pack("<IIQ", 9, 8, 2) + gguf_string("x") + gguf_string("yz")
    fields += gguf_string("a.row") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3)
    fields += gguf_string("a.flag") + struct.pack("<I?", 7, True)
    infos, offset = b"", 0
    for name, size in tensors.items():
        infos += gguf_string(name) + struct.pack("<I2QIQ", 2, 1, size, 0, offset)
        offset += size
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), 3) + fields + infos
    path.write_bytes(head + bytes(-len(head) % 32 + offset))


def test_gguf_sizes_follow_from_offsets(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": 320, "blk.0.ffn_up_exps.weight": 64, "output.weight": 96}
    write_gguf(tmp_path / "m.gguf", tensors)
    assert gguf_sizes(tmp_path / "m.gguf") == tensors


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(bytes(64))
    with pytest.raises(ValueError, match="not a GGUF file"):
        gguf_sizes(tmp_path / "m.gguf")


def test_gguf_trunk_excludes_embedding_and_experts(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {"token_embd.weight": 320, "blk.0.ffn_up_exps.weight": 64, "output.weight": 96})
    assert weights_of(tmp_path / "m.gguf", CONFIG) == Weights(96, 32, 2, 1, 1)


def test_checkpoint_with_a_tied_head_reads_the_embedding(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": 10, "model.layers.0.mlp.experts.0.up_proj.weight": 4}
    tensors["model.layers.0.mlp.experts.1.up_proj.weight"] = 4
    save_file({name: torch.zeros(size) for name, size in tensors.items()}, tmp_path / "model.safetensors")
    assert weights_of(tmp_path, CONFIG) == Weights(40, 16, 2, 1, 1)


def test_a_quantised_head_leaves_out_the_embedding(tmp_path: Path) -> None:
    sizes = {"model.embed_tokens.weight": 10, "lm_head.weight_q8": 3, "lm_head.weight_q8_scale": 1}
    sizes |= {f"model.layers.0.mlp.experts.{expert}.up_proj.weight": 4 for expert in range(2)}
    save_file({name: torch.zeros(size) for name, size in sizes.items()}, tmp_path / "model.safetensors")
    assert weights_of(tmp_path, CONFIG).trunk_bytes == 16


def test_streams_share_experts() -> None:
    weights = Weights(trunk_bytes=100, expert_bytes=10, num_experts=4, top_k=2, num_layers=3)
    assert weights.step_bytes(1) == 100 + 3 * 2 * 10
    assert weights.step_bytes(2) == 100 + 3 * 3 * 10


def test_a_step_reads_the_tokens_that_a_query_sees() -> None:
    sizes = CacheSizes([(8, None), (4, 128)], state_bytes=100)
    assert sizes.step_bytes(1000) == 8 * 1000 + 4 * 128 + 100
    assert sizes.step_bytes(10) == 8 * 10 + 4 * 10 + 100
