"""Shapes of published models, and the tensors of their GGUF files.

Names, fields and the types of Q4_K_M are llama.cpp's (``gguf-py/gguf/constants.py``, ``src/llama-quant.cpp``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.made_gguf.blocks import FORMATS

Fill = Literal["random", "router", "ones", "zeros"]
FLOAT_BYTES = 4
EMBEDDING_DEVIATION, DOWN_GAIN = 1.0, 2.0  # the product of gate and up is about half as large as its factors


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file, with the shape of its rows last, as numpy has it."""

    name: str
    shape: tuple[int, ...]
    type: str = "F32"
    fill: Fill = "random"
    gain: float = 1.0  # standard deviation, times the square root of a row's length

    @property
    def deviation(self) -> float:
        return self.gain * self.shape[-1] ** -0.5

    @property
    def nbytes(self) -> int:
        count = math.prod(self.shape)
        return count * FLOAT_BYTES if self.type == "F32" else FORMATS[self.type].nbytes(count)


@dataclass(frozen=True)
class LatentSizes:
    """Sizes of multi-head latent attention."""

    query_rank: int
    latent_rank: int
    plain_dim: int
    rotary_dim: int
    value_dim: int


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    architecture: str
    num_layers: int
    hidden: int
    vocabulary: int
    context: int
    num_experts: int
    top_k: int
    expert_width: int
    num_heads: int
    num_kv_heads: int = 1
    head_dim: int = 0
    latent: LatentSizes | None = None
    num_dense_layers: int = 0
    dense_width: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)  # further ones of the architecture

    def tensors(self) -> Iterator[Tensor]:
        """Yield all tensors in the order of the file."""
        is_mxfp4 = self.architecture == "gpt-oss"
        small, large = ("Q8_0", "Q8_0") if is_mxfp4 else ("Q4_K", "Q6_K")
        yield Tensor(
            "token_embd.weight", (self.vocabulary, self.hidden), small, gain=EMBEDDING_DEVIATION * self.hidden**0.5
        )
        yield Tensor("output_norm.weight", (self.hidden,), fill="ones")
        yield Tensor("output.weight", (self.vocabulary, self.hidden), large)
        for layer in range(self.num_layers):
            types = (small, large if self._has_more_bits(layer) else small)
            for tensor in self._layer(layer, types, "MXFP4" if is_mxfp4 else None):
                yield Tensor(f"blk.{layer}.{tensor.name}", tensor.shape, tensor.type, tensor.fill, tensor.gain)

    def metadata(self) -> Mapping[str, Any]:
        """Return the fields of the architecture, without its name before them."""
        attention: dict[str, Any] = {
            "attention.head_count": self.num_heads,
            "attention.head_count_kv": self.num_kv_heads,
        }
        if self.latent is None:
            attention |= {"attention.key_length": self.head_dim, "attention.value_length": self.head_dim}
        else:
            attention |= {
                "attention.q_lora_rank": self.latent.query_rank,
                "attention.kv_lora_rank": self.latent.latent_rank,
                "attention.key_length": self.latent.latent_rank + self.latent.rotary_dim,
                "attention.value_length": self.latent.latent_rank,
                "attention.key_length_mla": self.latent.plain_dim + self.latent.rotary_dim,
                "attention.value_length_mla": self.latent.value_dim,
                "rope.dimension_count": self.latent.rotary_dim,
                "leading_dense_block_count": self.num_dense_layers,
                "vocab_size": self.vocabulary,
            }
        return {
            "block_count": self.num_layers,
            "context_length": self.context,
            "embedding_length": self.hidden,
            "feed_forward_length": self.dense_width or self.expert_width,
            "expert_count": self.num_experts,
            "expert_used_count": self.top_k,
            "expert_feed_forward_length": self.expert_width,
            **attention,
            **self.fields,
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def _has_more_bits(self, layer: int) -> bool:
        """Return whether Q4_K_M gives a layer's values and down matrices six bits."""
        eighth = self.num_layers // 8
        return layer < eighth or layer >= 7 * self.num_layers // 8 or (layer - eighth) % 3 == 2

    def _layer(self, layer: int, types: tuple[str, str], expert_type: str | None) -> Iterator[Tensor]:
        hidden, width, count = self.hidden, self.expert_width, self.num_experts
        post_norm = "post_attention_norm" if self.architecture == "gpt-oss" else "ffn_norm"
        yield Tensor("attn_norm.weight", (hidden,), fill="ones")
        yield from self._grouped(types) if self.latent is None else self._latent(types[0], self.latent)
        yield Tensor(f"{post_norm}.weight", (hidden,), fill="ones")
        if layer < self.num_dense_layers:
            yield from _feed_forward("", hidden, self.dense_width, types)
            return
        yield Tensor("ffn_gate_inp.weight", (count, hidden), fill="router")
        yield from _feed_forward("_exps", hidden, width, (expert_type or types[0], expert_type or types[1]), (count,))
        if self.architecture == "gpt-oss":
            yield Tensor("ffn_gate_inp.bias", (count,), fill="zeros")
            for part, size in (("gate", width), ("up", width), ("down", hidden)):
                yield Tensor(f"ffn_{part}_exps.bias", (count, size), fill="zeros")
        if self.latent is not None:
            yield Tensor("exp_probs_b.bias", (count,), fill="zeros")
            yield from _feed_forward("_shexp", hidden, width, types)

    def _grouped(self, types: tuple[str, str]) -> Iterator[Tensor]:
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        outputs = {"attn_q": queries, "attn_k": keys, "attn_v": keys}
        for name, size in outputs.items():
            yield Tensor(f"{name}.weight", (size, self.hidden), types[name == "attn_v"])
        yield Tensor("attn_output.weight", (self.hidden, queries), types[0])
        if self.architecture == "gpt-oss":
            for name, size in (outputs | {"attn_output": self.hidden}).items():
                yield Tensor(f"{name}.bias", (size,), fill="zeros")
            yield Tensor("attn_sinks.weight", (self.num_heads,), fill="zeros")
        else:
            yield Tensor("attn_q_norm.weight", (self.head_dim,), fill="ones")
            yield Tensor("attn_k_norm.weight", (self.head_dim,), fill="ones")

    def _latent(self, kind: str, sizes: LatentSizes) -> Iterator[Tensor]:
        heads, query = self.num_heads, sizes.plain_dim + sizes.rotary_dim
        yield Tensor("attn_q_a.weight", (sizes.query_rank, self.hidden), kind)
        yield Tensor("attn_q_a_norm.weight", (sizes.query_rank,), fill="ones")
        yield Tensor("attn_q_b.weight", (heads * query, sizes.query_rank), kind)
        yield Tensor("attn_kv_a_mqa.weight", (sizes.latent_rank + sizes.rotary_dim, self.hidden), kind)
        yield Tensor("attn_kv_a_norm.weight", (sizes.latent_rank,), fill="ones")
        yield Tensor("attn_k_b.weight", (heads, sizes.latent_rank, sizes.plain_dim), "Q8_0")  # rows of no 256 numbers
        yield Tensor("attn_v_b.weight", (heads, sizes.value_dim, sizes.latent_rank), "Q8_0")
        yield Tensor("attn_output.weight", (self.hidden, heads * sizes.value_dim), kind)


def _feed_forward(
    suffix: str, hidden: int, width: int, types: tuple[str, str], experts: tuple[int, ...] = ()
) -> Iterator[Tensor]:
    yield Tensor(f"ffn_gate{suffix}.weight", (*experts, width, hidden), types[0])
    yield Tensor(f"ffn_up{suffix}.weight", (*experts, width, hidden), types[0])
    yield Tensor(f"ffn_down{suffix}.weight", (*experts, hidden, width), types[1], gain=DOWN_GAIN)


NORM = "attention.layer_norm_rms_epsilon"
SHAPES: Mapping[str, Shape] = {
    "qwen3-30b-a3b": Shape(
        "qwen3moe",
        num_layers=48,
        hidden=2048,
        vocabulary=151_936,
        context=40_960,
        num_experts=128,
        top_k=8,
        expert_width=768,
        num_heads=32,
        num_kv_heads=4,
        head_dim=128,
        fields={"rope.freq_base": 1e6, NORM: 1e-6},
    ),
    "gpt-oss-20b": Shape(
        "gpt-oss",
        num_layers=24,
        hidden=2880,
        vocabulary=201_088,
        context=131_072,
        num_experts=32,
        top_k=4,
        expert_width=2880,
        num_heads=64,
        num_kv_heads=8,
        head_dim=64,
        fields={
            "attention.sliding_window": 128,
            "rope.freq_base": 150_000.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 4096,
            "rope.scaling.yarn_beta_fast": 32.0,
            "rope.scaling.yarn_beta_slow": 1.0,
            NORM: 1e-5,
        },
    ),
    "glm-4.7-flash": Shape(
        "deepseek2",
        num_layers=47,
        hidden=2048,
        vocabulary=154_880,
        context=202_752,
        num_experts=64,
        top_k=4,
        expert_width=1536,
        num_heads=20,
        latent=LatentSizes(query_rank=768, latent_rank=512, plain_dim=192, rotary_dim=64, value_dim=256),
        num_dense_layers=1,
        dense_width=10_240,
        fields={
            "rope.freq_base": 1e6,
            NORM: 1e-5,
            "expert_group_count": 1,
            "expert_group_used_count": 1,
            "expert_shared_count": 1,
            "expert_weights_scale": 1.8,
            "expert_weights_norm": True,
        },
    ),
    "tiny": Shape(
        "qwen3moe",
        num_layers=2,
        hidden=256,
        vocabulary=1024,
        context=1024,
        num_experts=16,
        top_k=2,
        expert_width=256,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        fields={"rope.freq_base": 1e6, NORM: 1e-6},
    ),
}
