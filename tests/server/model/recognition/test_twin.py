"""A model is recognised on its twin, so that no number of a checkpoint's weights decides what runs natively."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.model.architecture import text_body
from server.model.blocks.errors import UnsupportedLayerError
from server.model.checkpoint.read_config import read_config
from server.model.layer_kinds import LayerKinds
from server.model.model_building import build_model
from server.model.recognition import find_program, narrowing
from server.model.recognition.narrowing import HIDDEN_SIZE, check_heads, narrow_by_heads, narrow_widths
from server.model.recognition.twin import build_twin
from tests.checkpoints import make_checkpoint, save_checkpoint
from tests.families import make_config
from tests.server.model.native_layers.test_native_layers import assert_native_layers_give_what_the_modules_give, load

needs_kernels = pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")


def with_wide_norms(model: PreTrainedModel) -> None:
    """Give norms weights from 0.1 to 20, by layer."""
    norms = [value for name, value in model.named_parameters() if "norm" in name]
    for value, size in zip(norms, torch.logspace(-1, 1.3, len(norms)).tolist(), strict=True):
        value.mul_(size)


def with_a_massive_channel(model: PreTrainedModel) -> None:
    """Let one token have a value of 2,000 in one channel."""
    model.get_input_embeddings().weight[3, 5] = 2000


def with_nothing(model: PreTrainedModel) -> None:
    """Make all weights zero."""
    for value in model.parameters():
        value.zero_()


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("change", [with_wide_norms, with_a_massive_channel, with_nothing])
@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss"])
def test_a_model_in_bfloat16_runs_natively_whatever_its_weights_are(
    change: object, model_type: str, pool: ComputePool, tmp_path: Path
) -> None:
    folder = make_checkpoint(model_type, tmp_path, torch.bfloat16)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        change(model)  # type: ignore[operator]
    model.save_pretrained(folder)
    assert load(folder, pool, torch.bfloat16).is_invariant


@pytest.mark.slow
@needs_kernels
def test_a_deep_model_in_bfloat16_runs_natively(pool: ComputePool, tmp_path: Path) -> None:
    config = make_config("qwen3_moe")
    config.num_hidden_layers = 94
    config.layer_types = ["full_attention"] * 94
    assert load(save_checkpoint(config, tmp_path, torch.bfloat16), pool, torch.bfloat16).is_invariant


@needs_kernels
def test_a_shared_expert_with_the_shape_of_the_router_is_not_taken_for_it(pool: ComputePool, tmp_path: Path) -> None:
    config = make_config("qwen3_next")
    config.shared_expert_intermediate_size = config.num_experts
    assert_native_layers_give_what_the_modules_give(save_checkpoint(config, tmp_path), pool)


def wide_config(model_type: str) -> PreTrainedConfig:
    config = make_config(model_type)
    config.hidden_size = 256
    return config


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral"])
def test_a_twin_is_narrow_where_the_numbers_of_a_head_stay(model_type: str) -> None:
    model = build_model(wide_config(model_type), torch.bfloat16)
    twin = build_twin(model, 64, narrow_widths)
    assert twin.model.config.hidden_size == HIDDEN_SIZE
    heads, own = (text_body(each).layers[0].self_attn for each in (twin.model, model))
    assert (heads.head_dim, heads.scaling) == (own.head_dim, own.scaling)


def test_a_twin_with_other_heads_than_the_model_is_refused() -> None:
    model, other = (build_model(wide_config("qwen3_moe"), torch.float32) for _ in range(2))
    text_body(other).layers[1].self_attn.head_dim = 4
    with pytest.raises(UnsupportedLayerError, match="head_dim of its Qwen3MoeAttention depends on a width"):
        check_heads(other, model)


@needs_kernels
def test_a_model_whose_config_can_not_be_made_narrow_is_recognised_on_a_wide_twin(
    pool: ComputePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: object) -> set[str]:
        raise UnsupportedLayerError(type(config).__name__)

    monkeypatch.setattr(find_program, "NARROWINGS", (fail,))
    assert_native_layers_give_what_the_modules_give(save_checkpoint(wide_config("qwen3_moe"), tmp_path), pool)


def many_heads(model_type: str) -> PreTrainedConfig:
    config = make_config(model_type)
    changes = {
        "olmoe": {"hidden_size": 128, "num_attention_heads": 16, "num_key_value_heads": 16},
        "granitemoehybrid": {"hidden_size": 128, "num_attention_heads": 16, "mamba_n_heads": 32},
        "dbrx": {"d_model": 128, "n_heads": 16},
    }
    for key, value in changes[model_type].items():
        setattr(config, key, value)
    if model_type == "dbrx":
        config.ffn_config.hidden_size = 128
    return config


@needs_kernels
@pytest.mark.parametrize(("model_type", "hidden_size"), [("olmoe", 24), ("granitemoehybrid", 48), ("dbrx", 48)])
def test_a_model_whose_hidden_size_is_that_of_its_heads_has_a_twin_with_fewer_heads(
    model_type: str, hidden_size: int, pool: ComputePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find_program, "NARROWINGS", (narrow_by_heads,))
    twin = build_twin(build_model(many_heads(model_type), torch.float32), 64, narrow_by_heads)
    assert twin.model.config.hidden_size == hidden_size
    assert_native_layers_give_what_the_modules_give(save_checkpoint(many_heads(model_type), tmp_path), pool)


def test_a_twin_has_no_towers() -> None:
    model = build_model(make_config("qwen3_vl_moe"), torch.float32)
    twin = build_twin(model, 64, narrow_widths)
    assert [*model.model.visual.parameters()]
    assert not [*twin.model.model.visual.parameters()]


def test_layers_that_take_their_own_keys_are_of_one_kind_wherever_they_stand() -> None:
    config = make_config("mistral_large4")
    text = config.text_config
    text.num_hidden_layers, text.mlp_layer_types = 6, ["sparse"] * 6
    text.layer_types, text.indexer_types = ["indexed_attention"] * 6, ["full"] * 6
    text.no_rope_layers, text.kv_source_layers = [1] * 6, [*range(6)]
    assert LayerKinds(build_model(config, torch.float32)).layer_of == [0] * 6


def test_a_twin_has_the_first_layers_alone_up_to_the_last_kind() -> None:
    config = make_config("lfm2_moe")
    config.layer_types = ["conv", "full_attention"] * 6
    config.num_hidden_layers = len(config.layer_types)
    twin = build_twin(build_model(config, torch.float32), 64, narrow_widths)
    assert len(text_body(twin.model).layers) == 4  # two with an MLP, and two with experts
    assert list(twin.layer_of) == [0, 1, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3]


@pytest.mark.slow
@needs_kernels
def test_the_root_of_the_hidden_size_multiplies_embeddings_in_the_model_s_dtype(
    pool: ComputePool, tmp_path: Path
) -> None:
    config = make_config("gemma4_text")
    config.hidden_size = 88  # whose root is 9.381
    native = load(save_checkpoint(config, tmp_path, torch.bfloat16), pool, torch.bfloat16)._native
    assert native is not None
    assert native._embedding.scale == 9.375


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("model_type", ["deepseek_v3", "gpt_oss", "qwen3_5_moe_text", "gemma4_text"])
def test_a_narrow_twin_shows_what_a_wider_model_computes(
    model_type: str, pool: ComputePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrowing, "HIDDEN_SIZE", 20)
    monkeypatch.setattr(narrowing, "WIDTH", 12)
    monkeypatch.setattr(narrowing, "FEW_HEADS", 2)
    folder = make_checkpoint(model_type, tmp_path)
    assert build_twin(build_model(read_config(folder), torch.float32), 64, narrow_widths).hidden_size > 20
    assert_native_layers_give_what_the_modules_give(folder, pool)
