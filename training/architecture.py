"""Architecture of the bundled model, and of the dense model that it is compared with."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM


@dataclass(frozen=True)
class Shape:
    """Sizes of both models. The dense feed-forward is as wide as the experts that one token uses."""

    hidden_size: int = 192
    num_hidden_layers: int = 6
    num_attention_heads: int = 3
    num_key_value_heads: int = 1
    head_dim: int = 64
    max_position_embeddings: int = 2048
    num_experts: int = 16
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 192


def build_model(vocab_size: int, *, dense: bool, shape: Shape | None = None) -> PreTrainedModel:
    """Build a Qwen3-MoE of 12 M parameters, or a dense Qwen3 with as many as the MoE has active (2.8 M)."""
    sizes = asdict(shape or Shape())
    moe = {name: sizes.pop(name) for name in ("num_experts", "num_experts_per_tok", "moe_intermediate_size")}
    common = {
        **sizes,
        "vocab_size": vocab_size,
        "intermediate_size": moe["num_experts_per_tok"] * moe["moe_intermediate_size"],
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "attn_implementation": "sdpa",
    }
    if dense:
        return Qwen3ForCausalLM(Qwen3Config(**common))
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(experts_implementation="grouped_mm", norm_topk_prob=True, **moe, **common)
    )


def count_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """Return the number of all parameters, and of those that one token uses: all but those of experts not chosen."""
    total = sum(param.numel() for param in model.parameters())
    experts = sum(param.numel() for name, param in model.named_parameters() if ".experts." in name)
    if not experts:
        return total, total
    idle = model.config.num_experts - model.config.num_experts_per_tok
    return total, total - experts * idle // model.config.num_experts
