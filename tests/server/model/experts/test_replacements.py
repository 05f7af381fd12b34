"""Replacements for experts have the results of transformers' own modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.step3p7.modeling_step3p7 import Step3p7Experts

from expert_store import CheckpointError, ExpertKey, ExpertStore, least_bytes
from server.kernels.expert import run_expert
from server.kernels.formats import block_int4, block_int8
from server.model.attention.kv_cache import KVCache
from server.model.checkpoint.weight_formats import WeightFormat
from server.model.errors import ModelError
from server.model.experts.replacements import replace_experts
from server.model.step import SequenceChunk, StepOutput
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import save_checkpoint
from tests.expert_store.lease_rows import one_row_each
from tests.families import make_config
from tests.server.model.checkpoint.test_packing import pack

PROMPT = [5, 17, 99, 3, 42, 8, 64, 23, 11, 90, 90, 12]
FFN = 24  # numbers between an expert's matrices, in ``tests.families``


def transformers_logits(folder: Path) -> torch.Tensor:
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: torch.Tensor = reference(torch.tensor([PROMPT]), use_cache=False).logits[0]
    return logits


def run(trunk: Trunk) -> StepOutput:
    """Run the prompt in one step, over the fewest experts."""
    store = ExpertStore(trunk.catalog, least_bytes(trunk.catalog, trunk.facts.top_k))
    groups = trunk.facts.kv_groups
    chunk = SequenceChunk(PROMPT, 0, [[0]] * len(groups), len(PROMPT))
    step = trunk.forward([chunk], KVCache(groups, [1] * len(groups), 16), store)
    store.close()
    return step


def rename(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Change the names and layout of a checkpoint's tensors."""
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.max() - expected.min())


def test_experts_that_compute_nothing_give_what_they_are_given(tmp_path: Path) -> None:
    """LongCat's router chooses among 8 experts and 4 of these, of which a checkpoint has no tensors."""
    config = make_config("longcat_flash")
    config.zero_expert_num = 4
    save_checkpoint(config, tmp_path)
    expected = transformers_logits(tmp_path)
    step = run(load_trunk(tmp_path, torch.float32))
    assert max(routing.max() for routing in step.routing.values()) >= 8
    assert_close(step.logits, expected)


@pytest.mark.slow
@pytest.mark.parametrize("top_k", [1, 3])
def test_inputs_that_a_router_scales_go_to_the_chosen_experts_alone(top_k: int, tmp_path: Path) -> None:
    config = make_config("llama4_text")
    config.num_experts_per_tok = top_k
    save_checkpoint(config, tmp_path)
    step = run(load_trunk(tmp_path, torch.float32))
    assert {routing.shape for routing in step.routing.values()} == {(len(PROMPT), top_k)}
    assert step.experts.num_lookups < 2 * len(PROMPT) * top_k + 1
    assert_close(step.logits, transformers_logits(tmp_path))


def test_llama_4_under_the_names_of_its_multimodal_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(make_config("llama4_text"), tmp_path)
    expected = transformers_logits(tmp_path)
    rename(tmp_path, lambda tensors: {f"language_model.{name}": value for name, value in tensors.items()})
    assert_close(run(load_trunk(tmp_path, torch.float32)).logits, expected)


@pytest.mark.slow
@pytest.mark.parametrize("normalisation", [None, 2.0])
def test_dbrx_with_weights_of_each_norm(normalisation: float | None, tmp_path: Path) -> None:
    config = make_config("dbrx")
    config.ffn_config.moe_normalize_expert_weights = normalisation
    save_checkpoint(config, tmp_path)
    assert_close(run(load_trunk(tmp_path, torch.float32)).logits, transformers_logits(tmp_path))


@pytest.mark.slow
def test_keys_that_several_experts_queries_look_at_are_kept_once(tmp_path: Path) -> None:
    config = make_config("jetmoe")
    config.num_experts_per_tok = 3
    config.num_attention_heads = 3 * config.num_key_value_heads
    trunk = load_trunk(save_checkpoint(config, tmp_path), torch.float32)
    assert {shape.kv_heads for shape in trunk.facts.kv_groups[0].shapes.values()} == {config.num_key_value_heads}
    assert_close(run(trunk).logits, transformers_logits(tmp_path))


def test_experts_with_a_clamped_gate_equal_transformers() -> None:
    config = transformers.Step3p7TextConfig(
        hidden_size=16, moe_intermediate_size=12, n_routed_experts=4, num_hidden_layers=2, swiglu_limits=[0.4, 0.0]
    )
    original = Step3p7Experts(config, layer_idx=0)
    for parameter in original.parameters():
        nn.init.normal_(parameter)
    model = nn.ModuleDict({"experts": original})
    replace_experts(model)
    module = model["experts"]
    rows = torch.randn((5, 16))
    for expert in range(4):
        weights = {name: parameter[expert] for name, parameter in module.named_parameters()}
        chosen = torch.full((5, 1), expert)
        torch.testing.assert_close(run_expert(module, weights, rows), original(rows, chosen, torch.ones(5, 1)))


def matrices(model_type: str, tensors: dict[str, torch.Tensor], expert: int) -> dict[str, torch.Tensor]:
    """Return an expert of the last layer as ``(out, in)``, from the published tensors."""
    rows = slice(expert * FFN, (expert + 1) * FFN)
    if model_type == "dbrx":
        w1, v1, w2 = (tensors[f"transformer.blocks.2.ffn.experts.mlp.{name}"][rows] for name in ("w1", "v1", "w2"))
        return {"gate_up_proj": torch.cat([w1, v1]), "down_proj": w2.T}
    if model_type == "jetmoe":
        first, second = (tensors[f"model.layers.2.mlp.{name}_linear.weight"][expert] for name in ("input", "output"))
        return {"gate_up_proj": first, "down_proj": second}
    prefix = "model.layers.3.feed_forward.experts"
    return {name: tensors[f"{prefix}.{name}"][expert].T for name in ("gate_up_proj", "down_proj")}


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "tolerance"), [("int8", 0.01), ("int4", 0.1)])
@pytest.mark.parametrize("model_type", ["dbrx", "jetmoe", "llama4_text"])
def test_quantised_packs_hold_an_experts_matrices_the_way_kernels_take_them(
    model_type: str, weights: WeightFormat, tolerance: float, tmp_path: Path
) -> None:
    kernel = block_int8 if weights == "int8" else block_int4
    folder = save_checkpoint(make_config(model_type), tmp_path / "checkpoint", torch.bfloat16)
    trunk = load_trunk(pack(folder, tmp_path / "pack", weights), torch.float32)
    tensors = load_file(folder / "model.safetensors")
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    with store.lease(one_row_each(max(trunk.catalog.layers), [3, 7])) as lease:
        for key, packed in lease:
            for name, wanted in matrices(model_type, tensors, key.expert).items():
                difference = kernel.dequantise(packed, name) - wanted.float()
                assert float(difference.norm()) < tolerance * float(wanted.float().norm())
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["dbrx", "jetmoe", "llama4_text"])
def test_an_expert_is_read_where_it_lies_and_not_put_together(model_type: str, tmp_path: Path) -> None:
    catalog = load_trunk(save_checkpoint(make_config(model_type), tmp_path), torch.float32).catalog
    recipe = catalog.recipe(ExpertKey(max(catalog.layers), 3))
    assert isinstance(recipe, dict)
    assert all(part.assemble is None for part in recipe.values())


@pytest.mark.parametrize(
    ("name", "rows", "complaint"),
    [
        ("w1", 8 * FFN - 1, r"mlp\.w1 has shape \[191, 32\]; its first dimension should be a multiple of 8"),
        ("w1", 8 * FFN - 8, r"convert to shape \[47, 32\]; .*experts\.gate_up_proj needs \[48, 32\]"),
        ("w2", 8 * FFN - 8, r"mlp\.w2 has shape \[23, 32\]; .*experts\.down_proj needs \[24, 32\]"),
    ],
)
def test_rows_that_are_not_those_of_all_experts_are_refused(
    name: str, rows: int, complaint: str, tmp_path: Path
) -> None:
    save_checkpoint(make_config("dbrx"), tmp_path)
    spoilt = f"transformer.blocks.1.ffn.experts.mlp.{name}"
    rename(tmp_path, lambda tensors: {**tensors, spoilt: tensors[spoilt][:rows].clone()})
    with pytest.raises(CheckpointError, match=complaint):
        load_trunk(tmp_path, torch.float32)


def test_matrices_that_lie_the_other_way_are_refused(tmp_path: Path) -> None:
    """They have as many bytes."""
    save_checkpoint(make_config("llama4_text"), tmp_path)
    turned = "model.layers.1.feed_forward.experts.gate_up_proj"
    rename(tmp_path, lambda tensors: {**tensors, turned: tensors[turned].mT.contiguous()})
    with pytest.raises(CheckpointError, match=r"has shape \[1, 48, 32\]; .*gate_up_proj needs \[32, 48\]"):
        load_trunk(tmp_path, torch.float32)


def test_an_expert_without_one_of_its_matrices_is_refused(tmp_path: Path) -> None:
    save_checkpoint(make_config("jetmoe"), tmp_path)
    lost = "model.layers.1.mlp.output_linear.weight"
    rename(tmp_path, lambda tensors: {name: value for name, value in tensors.items() if name != lost})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.experts: expert 0 has no tensor for down_proj"):
        load_trunk(tmp_path, torch.float32)


def test_a_router_that_mixes_tokens_is_refused_by_name(tmp_path: Path) -> None:
    save_checkpoint(make_config("doge"), tmp_path)
    with pytest.raises(ModelError, match="DogeForCausalLM has experts whose router gives a token the scores of other"):
        load_trunk(tmp_path, torch.float32)
