"""Quantised checkpoints that can't be served are refused in one sentence with the reason."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from expert_store import CheckpointError, ExpertLoadError, ExpertStore
from server.model.checkpoint.read_config import read_config
from server.model.errors import ModelError
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint, save_checkpoint
from tests.expert_store.lease_rows import one_row_each
from tests.families import make_config
from tests.quantise import (
    GROUP,
    Published,
    awq,
    bitsandbytes,
    compressed_tensors,
    edit_config,
    fp8,
    gptq,
    mxfp4,
    publish,
)

EXPERT, TRUNK = "model.layers.1.mlp.experts.3.up_proj", "model.layers.0.self_attn.q_proj"
INSTEAD = "; use the bf16 checkpoint, or one in mxfp4, nvfp4, fp8, compressed-tensors, AWQ or GPTQ"
MADE = Path(__file__).parents[3] / "quantised_by_tools"
WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
GROUPS = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}}, "format": "pack-quantized"}


def ct(**changes: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", **GROUPS, **changes}


def groups(*weights: dict[str, Any]) -> dict[str, Any]:
    return {
        "config_groups": {str(number): {"targets": ["Linear"], "weights": each} for number, each in enumerate(weights)}
    }


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        *(
            ({"quant_method": method}, f"by {method}, which is not supported")
            for method in ("gguf", "aqlm", "hqq", "quark", "quanto", "nonesuch")
        ),
        ({"load_in_4bit": True}, "by an unknown method, which is not supported"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, "by gptq with 3 bits, which is not supported"),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "marlin"},
            "by gptq in the format marlin, which is not supported",
        ),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {".*mlp.*": {"bits": 8}}},
            "by gptq with rules for single modules (dynamic), which is not supported",
        ),
        (
            {"quant_method": "auto-round", "bits": 4, "group_size": 32, "extra_config": {"lm_head": {"bits": 8}}},
            "by auto-round with settings for single modules (extra_config), which is not supported",
        ),
        ({"quant_method": "auto-round", "bits": 2}, "by auto-round with 2 bits, which is not supported"),
        (
            {"quant_method": "auto-round", "bits": 4, "data_type": "mx_fp", "packing_format": "auto_round:mxfp4"},
            "by auto-round in the format auto_round:mxfp4 of mx_fp, which is not supported",
        ),
        (
            {"quant_method": "auto-round", "bits": 4, "group_size": 32, "act_bits": 8},
            "by auto-round with activations of 8 bits, which is not supported",
        ),
        ({"quant_method": "bitsandbytes"}, "by bitsandbytes with neither 4 nor 8 bits, which is not supported"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"},
            "by bitsandbytes with codes stored as bfloat16, which is not supported",
        ),
        ({"quant_method": "awq", "bits": 8}, "by awq with 8 bits, which is not supported"),
        ({"quant_method": "awq", "version": "GEMV"}, "by awq for the gemv kernel, which is not supported"),
        ({"quant_method": "fp8", "expert_dtype": "fp4"}, "by fp8 with experts in fp4, which is not supported"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "by fp8 in the format e5m2, which is not supported"),
        (ct(format="marlin-24"), "by compressed-tensors in the format marlin-24, which is not supported"),
        (
            ct(transform_config={"config_groups": {"u": {"type": "hadamard"}}}),
            "by compressed-tensors with rotations of activations (transform_config), which is not supported",
        ),
        (
            ct(sparsity_config={"format": "sparse-24"}),
            "by compressed-tensors with sparse weights, which is not supported",
        ),
        (ct(**groups(WEIGHTS | {"num_bits": 3})), "by compressed-tensors with 3 bits, which is not supported"),
        (
            ct(**groups(WEIGHTS, WEIGHTS | {"num_bits": 8})),
            "by compressed-tensors with several settings of one type, which is not supported",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_an_unsupported_method_is_named_with_alternatives(config: dict[str, Any], reason: str, tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path / "tiny")
    edit_config(folder, quantization_config=config)
    with pytest.raises(ModelError) as raised:
        read_config(folder)
    assert str(raised.value) == f"tiny is quantised {reason}{INSTEAD}"


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"-:.*mlp.gate.*": {}}},
        ct(transform_config={"config_groups": {}}, sparsity_config={}),
        ct(**groups(WEIGHTS | {"strategy": None})),
        {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM"},
        {"quant_method": "fp8", "weight_block_size": None},
    ],
)
def test_what_changes_nothing_is_not_refused(config: dict[str, Any], tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path / "tiny")
    edit_config(folder, quantization_config=config)
    assert read_config(folder).quantization_config == config


@pytest.mark.parametrize(
    "config", [{"quant_method": "gptq"}, ct(config_groups=None), {"quant_method": "fp8", "weight_block_size": 7}]
)
def test_a_config_that_lacks_something_is_named(config: dict[str, Any], tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path / "tiny")
    edit_config(folder, quantization_config=config)
    with pytest.raises(ModelError, match=r"the quantization_config of tiny \(.*\) is invalid"):
        read_config(folder)


def quantised(published: Published, folder: Path, model_type: str = "qwen3_moe") -> Path:
    return publish(save_checkpoint(make_config(model_type), folder / "plain"), folder, published)[0]


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replace tensors, or remove those that are None."""
    path = folder / "model.safetensors"
    changed = {name if "." in name else name.replace("__", "."): value for name, value in tensors.items()}
    assert set(changed) <= set(load_file(path))
    kept = {name: value for name, value in (load_file(path) | changed).items() if value is not None}
    save_file(kept, path, {"format": "pt"})


INT4 = ("pack-quantized", torch.bfloat16)
PARTS = [
    (fp8(), "weight_scale_inv"),
    (compressed_tensors(*INT4, num_bits=4, type="int", strategy="group", group_size=GROUP), "weight_scale"),
    (
        compressed_tensors(*INT4, num_bits=4, type="int", strategy="group", group_size=GROUP, symmetric=False),
        "weight_zero_point",
    ),
    (bitsandbytes(), "weight.absmax"),
    (bitsandbytes(), "weight.nested_quant_map"),
    (awq(), "scales"),
    (awq(), "qzeros"),
    (gptq(), "qzeros"),
    (gptq(has_order=True), "g_idx"),
]


@pytest.mark.slow
@pytest.mark.parametrize("module", [EXPERT, TRUNK])
@pytest.mark.parametrize(("published", "part"), PARTS, ids=[part for _, part in PARTS])
def test_a_missing_part_is_named(published: Published, part: str, module: str, tmp_path: Path) -> None:
    folder = quantised(published, tmp_path)
    change(folder, **{f"{module}.{part}": None})
    with pytest.raises(CheckpointError, match=rf"is quantised, but {module}\.{part} is missing; download"):
        load_trunk(folder, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("module", [EXPERT, TRUNK])
@pytest.mark.parametrize(("published", "part"), PARTS, ids=[part for _, part in PARTS])
def test_a_part_of_the_wrong_shape_is_named(published: Published, part: str, module: str, tmp_path: Path) -> None:
    folder = quantised(published, tmp_path)
    value = load_file(folder / "model.safetensors")[f"{module}.{part}"]
    change(folder, **{f"{module}.{part}": value.repeat(*([1] * (value.ndim - 1)), 3)})
    with pytest.raises(CheckpointError, match=rf"{module}\.{part} has shape .* needs"):
        load_trunk(folder, torch.float32)


def test_codes_of_another_matrix_are_named(tmp_path: Path) -> None:
    folder = quantised(fp8(), tmp_path)
    other = load_file(folder / "model.safetensors")[f"{EXPERT.replace('up', 'down')}.weight"]
    scale = load_file(folder / "model.safetensors")[f"{EXPERT.replace('up', 'down')}.weight_scale_inv"]
    name = f"{EXPERT}.weight".replace(".", "__")
    change(folder, **{name: other, f"{name}_scale_inv": scale})
    with pytest.raises(CheckpointError, match=r"up_proj\.weight have shape \[56, 32, 24\] together; .*gate_up"):
        load_trunk(folder, torch.float32)


def test_blocks_without_scales_are_named(tmp_path: Path) -> None:
    config = make_config("gpt_oss")
    config.hidden_size, config.intermediate_size = 64, 32
    folder = publish(save_checkpoint(config, tmp_path / "plain"), tmp_path, mxfp4())[0]
    change(folder, model__layers__1__mlp__experts__down_proj_scales=None)
    with pytest.raises(CheckpointError, match=r"experts\.down_proj_scales is missing"):
        load_trunk(folder, torch.float32)


def test_fused_experts_that_are_too_few_are_named(tmp_path: Path) -> None:
    folder = quantised(fp8(), tmp_path, "gemma4_text")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.experts.down_proj"))
    few = {name: tensors[name][:5].clone(), f"{name}_scale_inv": tensors[f"{name}_scale_inv"][:5].clone()}
    change(folder, **{key.replace(".", "__"): value for key, value in few.items()})
    with pytest.raises(CheckpointError, match=r"experts\.down_proj has shape .*it should hold matrices of 8 experts"):
        load_trunk(folder, torch.float32)


def test_a_parameter_that_is_quantised_in_part_is_named(tmp_path: Path) -> None:
    folder = quantised(fp8(), tmp_path)
    change(folder, **{f"{EXPERT}.weight".replace(".", "__"): torch.zeros(24, 32)})
    with pytest.raises(CheckpointError, match=r"gate_up_proj is quantised, but its tensors are not matrices"):
        load_trunk(folder, torch.float32)


def test_an_expert_that_is_not_quantised_like_the_others_is_named(tmp_path: Path) -> None:
    folder = quantised(fp8(), tmp_path)
    change(folder, **{f"{EXPERT.replace('up', 'down')}.weight".replace(".", "__"): torch.zeros(32, 24)})
    with pytest.raises(
        CheckpointError, match=r"down_proj\.weight is torch\.float32, expert 3 of layer 1 needs torch\.float8"
    ):
        load_trunk(folder, torch.float32)


@pytest.mark.slow
def test_an_expert_with_unequal_groups_is_named_when_it_is_read(tmp_path: Path) -> None:
    """The values are wrong, which headers do not show."""
    folder = quantised(gptq(has_order=True), tmp_path)
    change(folder, **{f"{EXPERT}.g_idx".replace(".", "__"): torch.zeros(32, dtype=torch.int32)})
    trunk = load_trunk(folder, torch.float32)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    with (
        pytest.raises(ExpertLoadError, match=r"g_idx has groups with another size than 8 inputs"),
        store.lease(one_row_each(1, [3])) as lease,
    ):
        list(lease)
    store.close()


@pytest.mark.parametrize(
    ("model_type", "quantization"),
    [
        ("qwen3_moe", {"group_size": 64, "bits": 3}),
        ("qwen3_moe", {"group_size": 32, "bits": 4, "mode": "mxfp4"}),
        ("qwen3_moe", {"group_size": 64, "bits": 4, "model.layers.0.mlp.gate": {"group_size": 64, "bits": 6}}),
        ("qwen3_next", {"group_size": 64, "bits": 4}),
    ],
)
def test_what_mlx_converted_in_another_way_is_refused(
    model_type: str, quantization: dict[str, Any], tmp_path: Path
) -> None:
    make_config(model_type).save_pretrained(tmp_path)
    edit_config(tmp_path, quantization=quantization)
    with pytest.raises(
        ModelError, match=r"is in MLX's format, .* give the checkpoint .* or a GGUF, AWQ or GPTQ upload"
    ):
        read_config(tmp_path)


def test_experts_that_mlx_stacked_are_refused_where_it_changes_more(tmp_path: Path) -> None:
    """It adds one to the norms of Qwen3-Next, and writes no quantization into the config if there is none."""
    path = make_checkpoint("qwen3_next", tmp_path) / "model.safetensors"
    tensors = load_file(path)
    kept = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    save_file(kept | {"model.layers.0.mlp.switch_mlp.up_proj.weight": torch.zeros(8, 24, 32)}, path, {"format": "pt"})
    with pytest.raises(ModelError, match="is in MLX's format"):
        load_trunk(tmp_path, torch.float32)


def test_a_stack_of_too_many_experts_is_named(tmp_path: Path) -> None:
    folder = shutil.copytree(MADE / "mlx" / "mixtral", tmp_path / "made")
    name = "model.layers.0.block_sparse_moe.switch_mlp.up_proj.scales"
    change(folder, **{name: torch.zeros(10**9, 0)})
    with pytest.raises(CheckpointError, match=r"up_proj\.scales has shape \[1000000000, 0\]; its first .* should be 3"):
        load_trunk(folder, torch.float32)


def test_scales_of_zero_in_8_bits_of_mlx_are_named_when_they_are_read(tmp_path: Path) -> None:
    folder = shutil.copytree(MADE / "mlx" / "mixtral", tmp_path / "made")
    name = "model.layers.0.block_sparse_moe.switch_mlp.up_proj.scales"
    scales = load_file(folder / "model.safetensors")[name]
    scales[2] = 0.0
    change(folder, **{name: scales})
    trunk = load_trunk(folder, torch.float32)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    with (
        pytest.raises(ExpertLoadError, match=r"experts\.2\.up_proj\.scales has scales of zero"),
        store.lease(one_row_each(0, [2])) as lease,
    ):
        list(lease)
    store.close()


STATE = "weight.quant_state.bitsandbytes__nf4"


def as_bytes(text: str) -> torch.Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    "text",
    ["{", "{}", '{"shape": [4], "blocksize": 64}', '{"shape": [32, 32], "blocksize": 1099511627776}', "1" * 5000],
)
def test_what_does_not_describe_a_matrix_of_bitsandbytes_is_named(text: str, tmp_path: Path) -> None:
    folder = quantised(bitsandbytes(), tmp_path)
    names = [name for name in load_file(folder / "model.safetensors") if name.endswith(f"self_attn.q_proj.{STATE}")]
    change(folder, **{name: as_bytes(text) for name in names})
    with pytest.raises(CheckpointError, match=r"q_proj\.weight\.quant_state\.\w+ (does not describe|has 5,000 bytes)"):
        load_trunk(folder, torch.float32)


def test_an_expert_of_bitsandbytes_with_another_shape_is_named_when_it_is_read(tmp_path: Path) -> None:
    """The descriptions of experts are read with their weights."""
    folder = quantised(bitsandbytes(), tmp_path)
    state = load_file(folder / "model.safetensors")[f"{EXPERT}.{STATE}"]
    other = bytes(state.tolist()).decode().replace("[24, 32]", "[32, 24]")
    change(folder, **{f"{EXPERT}.{STATE}": as_bytes(other)})
    trunk = load_trunk(folder, torch.float32)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    with (
        pytest.raises(ExpertLoadError, match=r"describes a matrix of \[32, 24\]; others have \[24, 32\]"),
        store.lease(one_row_each(1, [3])) as lease,
    ):
        list(lease)
    store.close()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "hf_quant_config.json",
            '{"quantization": {"quant_algo": "W4A16_AWQ"}}',
            "is quantised by modelopt as W4A16_AWQ",
        ),
        ("hf_quant_config.json", "{}", "is quantised by modelopt as None, which is not supported"),
        ("quanto_qmap.json", "{}", "is quantised by quanto, which is not supported"),
    ],
)
def test_a_method_that_is_named_beside_the_config_is_refused_by_name(
    tmp_path: Path, name: str, content: str, reason: str
) -> None:
    make_config("qwen3_moe").save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=reason):
        read_config(tmp_path)


@pytest.mark.parametrize("name", [EXPERT, TRUNK])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.int32])
def test_codes_of_a_quantisation_that_nothing_names_are_refused(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    path = make_checkpoint("qwen3_moe", tmp_path) / "model.safetensors"
    tensors = load_file(path)
    tensors[f"{name}.weight"] = tensors[f"{name}.weight"].to(dtype)
    save_file(tensors, path, {"format": "pt"})
    found = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=f"{name}.weight is stored as {found}, and the model needs float32"):
        load_trunk(tmp_path, torch.float32)
