"""Checkpoints that can't be served are refused in one sentence that names the problem."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from expert_store import CheckpointError, ExpertStore
from server.model import trunk_loader
from server.model.attention.kv_cache import KVCache
from server.model.checkpoint.locate import find_checkpoint
from server.model.checkpoint.read_config import read_config
from server.model.checkpoint.tensor_map import check_trunk_tensors
from server.model.dtype import compute_dtype
from server.model.errors import ModelError
from server.model.from_config.shapes import infer_shapes
from server.model.opening.open_checkpoint import open_checkpoint
from server.model.step import SequenceChunk
from server.model.trunk_loader import build_model, load_trunk
from tests.checkpoints import make_checkpoint
from tests.families import make_config


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint("qwen3_moe", tmp_path / "tiny")


def change_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of a checkpoint, or drop those that are None; ``__`` means a dot."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name.replace("__", ".")]
        else:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, path, metadata={"format": "pt"})


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_missing_expert_tensor_is_named(checkpoint: Path) -> None:
    change_tensors(checkpoint, model__layers__1__mlp__experts__5__down_proj__weight=None)
    with pytest.raises(CheckpointError, match="expert 5 has no tensor for down_proj"):
        load_trunk(checkpoint, torch.float32)


def test_half_an_expert_is_named(checkpoint: Path) -> None:
    change_tensors(checkpoint, model__layers__1__mlp__experts__5__up_proj__weight=None)
    with pytest.raises(CheckpointError, match=r"experts\.5\.gate_proj|gate_up_proj"):
        load_trunk(checkpoint, torch.float32)


def test_a_missing_trunk_tensor_is_named(checkpoint: Path) -> None:
    change_tensors(checkpoint, model__layers__2__self_attn__q_proj__weight=None)
    with pytest.raises(ModelError, match=r"tiny lacks model\.layers\.2\.self_attn\.q_proj\.weight"):
        load_trunk(checkpoint, torch.float32)


def test_an_expert_of_the_wrong_shape_is_named(checkpoint: Path) -> None:
    change_tensors(checkpoint, model__layers__0__mlp__experts__2__down_proj__weight=torch.zeros(5, 7))
    with pytest.raises(CheckpointError, match=r"experts\.2\.down_proj\.weight"):
        load_trunk(checkpoint, torch.float32)


def test_a_trunk_tensor_of_the_wrong_shape_is_refused(checkpoint: Path) -> None:
    change_tensors(checkpoint, model__layers__0__self_attn__q_proj__weight=torch.zeros(5, 7))
    with pytest.raises(ModelError, match=r"does not match its config\.json: .*q_proj"):
        load_trunk(checkpoint, torch.float32)


def test_a_trunk_tensor_with_nan_is_named(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    weight = load_file(path)["model.layers.1.self_attn.k_proj.weight"]
    weight[3, 2] = torch.nan
    change_tensors(checkpoint, model__layers__1__self_attn__k_proj__weight=weight)
    with pytest.raises(ModelError, match=r"^model\.layers\.1\.self_attn\.k_proj\.weight holds NaN \(not a number\)"):
        load_trunk(checkpoint, torch.float32)


def test_an_expert_too_many_is_named(checkpoint: Path) -> None:
    change_tensors(checkpoint, model__layers__0__mlp__experts__8__down_proj__weight=torch.zeros(32, 24))
    with pytest.raises(CheckpointError, match="belongs to expert 8, but the model has 8 experts in a layer"):
        load_trunk(checkpoint, torch.float32)


def test_extra_tensors_are_ignored(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    change_tensors(checkpoint, model__layers__9__mtp__weight=torch.zeros(3))
    load_trunk(checkpoint, torch.float32)
    assert "model.layers.9.mtp.weight" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "nonesuch"}, r"config\.json of tiny can't be used"),
        (
            {"hidden_size": "32"},
            r"config\.json of tiny can't be used: hidden_size is the text '32', not a whole number from 1 to",
        ),
        ({"model_type": "clip"}, "transformers has no clip that writes text"),
        ({"quantization_config": {"quant_method": "gguf"}}, r"tiny is quantised by gguf, which is not supported; use"),
        ({"quantization_config": ["fp8"]}, r"config\.json of tiny can't be used"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok is 0, not a number from 1 to the 8 experts of a layer"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, not a number from 1 to the 8 experts of a layer"),
        ({"n_group": 3, "topk_group": 1}, "n_group is 3, which does not divide the 8 experts of a layer"),
        ({"n_group": 1000, "topk_group": 1}, "n_group is 1000, which does not divide the 8 experts of a layer"),
        ({"n_group": -1, "topk_group": 1}, "n_group is -1, which does not divide the 8 experts of a layer"),
        ({"n_group": 2, "topk_group": 3}, "topk_group is 3, not a number from 1 to the 2 groups of a layer"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, not a whole number from 1 to 1048576"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0, not a whole number from 1 to 1048576"),
        (
            {"per_layer_config": {"1": {"num_attention_heads": 0}}},
            "num_attention_heads is 0, not a whole number from 1 to 1048576",
        ),
        (
            {"per_layer_config": {"1": {"num_experts": 1}}},
            "num_experts_per_tok is 2, not a number from 1 to the 1 experts of a layer",
        ),
        ({"vocab_size": -1}, "vocab_size is -1, not a whole number from 1 to 268435456"),
        ({"num_hidden_layers": 1_000_000}, "num_hidden_layers is 1000000, not a whole number from 1 to 1000"),
        ({"num_experts": 10**9}, "num_experts is 1000000000, not a whole number from 0 to 20000"),
        ({"dtype": "nope"}, "dtype is 'nope', not a type of floating-point numbers"),
        ({"dtype": "int8"}, "dtype is 'int8', not a type of floating-point numbers"),
        ({"torch_dtype": ["float32"]}, r"torch_dtype is \['float32'\], not a type of floating-point numbers"),
        ({"dtype": "nn"}, "dtype is 'nn', not a type of floating-point numbers"),
        ({"rope_parameters": [1]}, "Field 'rope_parameters' with value"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused(checkpoint: Path, changes: dict[str, Any], message: str) -> None:
    change_config(checkpoint, **changes)
    with pytest.raises(ModelError, match=message):
        read_config(checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_act": "nope"},
            "describes no qwen3_moe that can be built: hidden_act is 'nope', which transformers does",
        ),
        (
            {"rope_parameters": {"rope_type": "nope", "rope_theta": 1e4}},
            "rope_type is 'nope', which transformers does not",
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "describes no qwen3_moe that can be built"),
        ({"moe_intermediate_size": -1}, "Trying to create tensor with negative dimension"),
        ({"pad_token_id": 10**6}, "Padding_idx must be within num_embeddings"),
    ],
)
def test_a_config_of_which_no_model_can_be_built_is_refused(
    checkpoint: Path, changes: dict[str, Any], message: str
) -> None:
    change_config(checkpoint, **changes)
    for examine in (load_trunk, lambda folder, dtype: infer_shapes(read_config(folder), dtype)):
        with pytest.raises(ModelError, match=message):
            examine(checkpoint, torch.float32)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", ["[]", "null", "{", "[" * 100_000])
def test_a_file_of_settings_that_is_no_json_object_is_named(checkpoint: Path, name: str, content: str) -> None:
    (checkpoint / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{name} is .*; download the checkpoint again"):
        read_config(checkpoint)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "tokenizer.model", "chat_template.jinja"])
def test_a_pipe_in_place_of_a_file_is_refused_before_anybody_waits_for_it(checkpoint: Path, name: str) -> None:
    os.mkfifo(checkpoint / name)
    with pytest.raises(CheckpointError, match=f"{name} is not a regular file"):
        read_config(checkpoint)


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="LlamaForCausalLM has no routed experts"):
        load_trunk(tmp_path, torch.float32)


def test_code_in_a_checkpoint_is_never_run(checkpoint: Path) -> None:
    (checkpoint / "evil.py").write_text("raise SystemExit('code of a checkpoint was run')")
    change_config(checkpoint, model_type="custom", auto_map={"AutoConfig": "evil.Config"})
    with pytest.raises(ModelError, match="can't be used"):
        read_config(checkpoint)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", "there is no folder ./nowhere"),
        ("./nowhere.gguf", "there is no file ./nowhere.gguf"),
        ("one/two/three", "there is no folder"),
        ("owner/absent-model", "the hub cache .* does not have all its files, and HF_HUB_OFFLINE is set"),
        ("owner/absent-model:Q4_K_M", r"run `hf download owner/absent-model --include '\*Q4_K_M\*'`"),
        ("owner/a--b", "it is not a valid hub name"),
    ],
)
def test_a_missing_model_is_named(model: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=message):
        find_checkpoint(model, None)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter; give the model that"),
        (
            ["config.json", "pytorch_model.bin"],
            r"has pickled weights alone \(.bin\), which are never opened",
        ),
        (["config.json", "model.pt"], r"has pickled weights alone \(.pt\)"),
    ],
)
def test_a_folder_without_safetensors_is_refused_by_its_format(tmp_path: Path, names: list[str], reason: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=reason):
        find_checkpoint(str(tmp_path), None)


def test_a_file_of_safetensors_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(ModelError, match=r"is a file; give a \.gguf file, or the folder"):
        find_checkpoint(str(path), None)


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal is simulated, since tests may run as root."""

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ModelError, match="can't be read: Permission denied"):
        find_checkpoint(str(tmp_path), None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"),
            "CUDA out of memory. Tried to allocate 2.00 GiB; free memory on the device",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`"), "NOT_INITIALIZED when"),
        (
            torch.AcceleratorError("CUDA error: device-side assert triggered"),
            "device-side assert triggered; `greenroom",
        ),
    ],
)
def test_an_error_of_the_device_is_not_blamed_on_the_config(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(trunk_loader, "Trunk", fail)
    with pytest.raises(ModelError, match=f"^the device failed while qwen3_moe was loaded: .*{message}"):
        load_trunk(checkpoint, torch.float32)


@pytest.mark.parametrize("name", ["a\nGreenroom ready: b", "a\x1b[2J", "a\udcff"])
def test_a_folder_whose_name_can_not_be_printed_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    for folder in (str(tmp_path / name), f"{tmp_path}/{name}/../{name}"):
        with pytest.raises(ModelError, match=r"^the name '.*' has characters that can't be printed; rename the folder"):
            find_checkpoint(folder, None)


def test_a_folder_is_named_after_itself(checkpoint: Path) -> None:
    assert find_checkpoint(str(checkpoint), None) == (checkpoint, "tiny")


@pytest.mark.slow
def test_bfloat16_experts_keep_their_bytes_and_compute_as_asked(tmp_path: Path) -> None:
    """Slots hold the checkpoint's dtype; float32 results equal those of transformers on the same weights."""
    folder = make_checkpoint("qwen3_moe", tmp_path / "bf16", torch.bfloat16)
    assert compute_dtype("float32", read_config(folder), torch.device("cpu")) == torch.float32
    trunk = load_trunk(folder, torch.float32)
    assert {p.dtype for layout in trunk.catalog.layouts for p in layout.parameters} == {torch.bfloat16}
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    prompt = [3, 1, 4, 1, 5]
    logits = trunk.forward([SequenceChunk(prompt, 0, [[0]])], KVCache(trunk.facts.kv_groups, [1], 8), store).logits
    store.close()
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = reference(torch.tensor([prompt])).logits[0, -1].detach()
    assert float((logits[0] - expected).abs().max()) < 1e-4 * float(expected.max() - expected.min())


def test_a_model_whose_ranges_are_large_is_built_without_memory() -> None:
    config = make_config("jamba")
    config.mamba_d_state = 1 << 17
    state = build_model(config, torch.float32).state_dict()
    assert all(tensor.is_meta for name, tensor in state.items() if name.endswith("A_log"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mlp_only_layers": [0], "intermediate_size": 1 << 20},
            r"tiny lacks model\.layers\.0\.mlp\.down_proj\.weight",
        ),
        (
            {"head_dim": 1 << 20},
            r"tiny does not match its config\.json: .*k_norm\.weight has shape \[8\], not \[1048576",
        ),
    ],
)
def test_sizes_that_the_tensors_do_not_have_are_refused_before_a_trial(
    checkpoint: Path, changes: dict[str, Any], message: str
) -> None:
    change_config(checkpoint, **changes)
    opened = open_checkpoint(checkpoint)
    model = build_model(opened.read_config(), torch.float32)
    with pytest.raises(ModelError, match=message):
        check_trunk_tensors("tiny", model, opened.map(model))


def test_the_tables_that_a_config_describes_are_part_of_the_planned_memory(tmp_path: Path) -> None:
    folder = make_checkpoint("kimi_k25", tmp_path / "tiny")
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    planned = []
    for length in (vision["pos_emb_time"], vision["pos_emb_time"] + 1000):
        change_config(folder, vision_config=vision | {"pos_emb_time": length})
        load_trunk(folder, torch.float32, check_memory=lambda nbytes, _: planned.append(nbytes))
    assert planned[1] - planned[0] == 1000 * vision["hidden_size"] * torch.float32.itemsize
