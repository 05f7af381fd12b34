"""Models in files that llama.cpp's converter wrote are those of the checkpoints that the files were made from."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expert_store import CheckpointError, ExpertKey, ExpertStore
from server.kernels.compute_pool import ComputePool
from server.kernels.native.library import Kernels
from server.model.blocks.workspace import BLOCK
from server.model.checkpoint import packed_trunk
from server.model.checkpoint.gguf.gguf_file import GgufFile
from server.model.checkpoint.locate import find_local
from server.model.errors import ModelError
from server.model.model_building import build_model
from server.model.opening.gguf_checkpoint import GgufCheckpoint
from server.model.opening.open_checkpoint import open_checkpoint
from server.model.trunk_loader import load_trunk
from tests.gguf.models import FILES, MODELS, SPECIAL, TEMPLATE, make_checkpoint, make_config, make_model, make_tokenizer
from tests.server.model.test_parity import generate

TEXT = "the thin theatre\n\n  in Ünïcödé, 12345 and <|im_end|> on"
QUANTISED = "qwen3moe"  # the file whose experts are quantised
PROMPT = [5, 17, 99, 3, 42, 8, 64, 100]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_logits_are_those_of_transformers(name: str) -> None:
    model = make_model(name).float()
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPT])).logits[0, -1]
    trunk = load_trunk(FILES / f"{name}.gguf", torch.float32)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    [(_, logits)] = generate(trunk, store, steps=1, prompts=[PROMPT])
    store.close()
    span = float(expected.max() - expected.min())
    assert float((logits[0] - expected).abs().max()) < 1e-4 * span


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_native_layers_run_a_file_as_far_as_they_run_its_checkpoint(name: str, tmp_path: Path) -> None:
    pool = ComputePool(1, Kernels(1))
    expected = load_trunk(make_checkpoint(name, tmp_path), torch.bfloat16, pool=pool)
    found = load_trunk(FILES / f"{name}.gguf", torch.bfloat16, pool=pool)
    texts = (trunk.facts.program.describe() for trunk in (found, expected))
    assert len({re.sub(r"[\d.]+ \+- [\d.]+", "a factor", text) for text in texts}) == 1


def test_the_tokenizer_encodes_as_that_of_the_checkpoint() -> None:
    found = GgufCheckpoint(FILES, "qwen3moe.gguf").load_tokenizer()
    assert found.encode(TEXT) == make_tokenizer().encode(TEXT)
    assert found.decode(found.encode(TEXT)) == TEXT
    assert found.chat_template == TEMPLATE


def test_end_tokens_are_those_of_the_file_and_of_usual_names() -> None:
    values = GgufCheckpoint(FILES, "qwen3moe.gguf").generation_values()
    assert values is not None
    assert values["eos_token_id"] == [SPECIAL.index("<|endoftext|>"), SPECIAL.index("<|im_end|>")]


Q4_0, Q8_0 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0
FLOAT32 = gguf.GGMLQuantizationType.F32


def rewrite(
    path: Path,
    experts: gguf.GGMLQuantizationType | None = None,
    *,
    name: str = QUANTISED,
    trunk: gguf.GGMLQuantizationType | None = None,
    stored_as: gguf.GGMLQuantizationType | None = None,
    changes: Mapping[str, Any] = MappingProxyType({}),
    renamed: Mapping[str, str | None] = MappingProxyType({}),
    added: Mapping[str, np.ndarray] = MappingProxyType({}),
    without: Collection[str] = (),
    split: int = 0,
) -> Path:
    """Write a file again, somewhat differently.

    Args:
        experts: the type that the experts are quantised to.
        name: of the model.
        trunk: the type that the other matrices are quantised to, whose rows are complete groups.
        stored_as: the type that these numbers are stored in; None for the same.
        changes: values of the metadata.
        renamed: other names of tensors; None leaves one out.
        added: further tensors, in float32.
        without: keys of the metadata that are left out.
        split: the largest number of tensors in a file.
    """
    reader = gguf.GGUFReader(FILES / f"{name}.gguf")
    writer = gguf.GGUFWriter(path, "", split_max_tensors=split)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.") and key not in without}
    for key, field in fields.items():
        value = changes.get(key, field.contents())
        kinds = [*field.types, None]
        if isinstance(value, list) and kinds[0] != gguf.GGUFValueType.ARRAY:
            kinds = [gguf.GGUFValueType.ARRAY, kinds[0]]
        writer.add_key_value(key, value, kinds[0], sub_type=kinds[1])
    for tensor in reader.tensors:
        written = renamed.get(tensor.name, tensor.name)
        if written is None:
            continue
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        kind, is_matrix = tensor.tensor_type, tensor.name.endswith(".weight") and values.ndim > 1
        if "_exps" in tensor.name:
            kind = experts if experts is not None and is_matrix else kind
        elif trunk is not None and is_matrix and values.shape[-1] % 32 == 0 and "_inp" not in tensor.name:
            kind = trunk
        data = gguf.quants.quantize(values, kind)
        if stored_as is not None:
            data, kind = gguf.quants.quantize(gguf.quants.dequantize(data, kind), stored_as), stored_as
        writer.add_tensor(written, data, raw_dtype=kind)
    for each, values in added.items():
        writer.add_tensor(each, values)
    for key in changes.keys() - fields.keys():
        writer.add_key_value(key, changes[key], gguf.GGUFValueType.get_type(changes[key]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits_of(path: Path, pool: ComputePool | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    trunk = load_trunk(path, dtype, pool=pool)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    [(_, logits)] = generate(trunk, store, steps=1, prompts=[PROMPT], block_size=BLOCK)
    store.close()
    return logits[0]


def test_quantised_experts_have_the_logits_of_what_they_stand_for(tmp_path: Path) -> None:
    quantised = logits_of(rewrite(tmp_path / "q4.gguf", Q4_0))
    expected = logits_of(rewrite(tmp_path / "f32.gguf", Q4_0, stored_as=FLOAT32))
    assert float((quantised - expected).abs().max()) < 1e-4 * float(expected.max() - expected.min())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_linear_layers_stay_quantised_with_the_logits_of_what_they_stand_for(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_trunk, "LEAST_WEIGHTS", 1)
    quantised = rewrite(tmp_path / "q8.gguf", Q8_0, name=name, trunk=Q8_0)
    checkpoint = open_checkpoint(quantised)
    packed = checkpoint.packed_matrices(build_model(checkpoint.read_config(), torch.float32))
    assert any("o_proj" in each or "out_proj" in each for each in packed)
    found = logits_of(quantised)
    expected = logits_of(rewrite(tmp_path / "f32.gguf", Q8_0, name=name, trunk=Q8_0, stored_as=FLOAT32))
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.max() - expected.min())


def values_of(name: str, tensor: str) -> np.ndarray:
    """Return a tensor of a model's file in float32."""
    [found] = [each for each in gguf.GGUFReader(FILES / f"{name}.gguf").tensors if each.name == tensor]
    values: np.ndarray = gguf.quants.dequantize(found.data, found.tensor_type)
    return values


@pytest.mark.slow
def test_older_files_have_the_expansion_of_latents_as_one_matrix(tmp_path: Path) -> None:
    name, renamed, added = "deepseek-v3", dict[str, str | None](), dict[str, np.ndarray]()
    for layer in range(2):
        keys, expanded = (f"blk.{layer}.attn_{kind}_b.weight" for kind in ("k", "v"))
        renamed |= {keys: None, expanded: None}
        joined = np.concatenate([values_of(name, keys).swapaxes(1, 2), values_of(name, expanded)], 1)
        added[f"blk.{layer}.attn_kv_b.weight"] = joined.reshape(-1, joined.shape[-1])
    changes = {"attention.key_length": 40, "attention.value_length": 16, "attention.head_count_kv": 4}
    path = rewrite(
        tmp_path / "older.gguf",
        name=name,
        changes={f"deepseek2.{key}": value for key, value in changes.items()},
        without=[f"deepseek2.attention.{kind}_length_mla" for kind in ("key", "value")],
        renamed=renamed,
        added=added,
    )
    assert torch.equal(logits_of(path), logits_of(FILES / f"{name}.gguf"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen35moe", "glm4moe", "nemotron_h_moe"])
def test_blocks_that_predict_further_tokens_are_left_out(tmp_path: Path, name: str) -> None:
    layers = make_config(name).get_text_config().num_hidden_layers
    changes: dict[str, Any] = {f"{name}.block_count": layers + 1, f"{name}.nextn_predict_layers": 1}
    for key in ("feed_forward_length", "attention.head_count_kv"):
        numbers = GgufFile.open(FILES, f"{name}.gguf").value(key)
        if isinstance(numbers, list):
            changes[f"{name}.{key}"] = [*numbers, 2]
    further = {f"blk.{layers}.nextn.eh_proj.weight": np.ones((32, 64), np.float32)}
    path = rewrite(tmp_path / "tiny.gguf", name=name, changes=changes, added=further)
    assert torch.equal(logits_of(path), logits_of(FILES / f"{name}.gguf"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        *((name, torch.float32, 1e-4) for name in ("qwen3moe", "qwen35moe", "gemma4", "deepseek-v3")),
        ("deepseek-v3", torch.bfloat16, 0.05),  # whose heads have rows of their own in int8
    ],
)
def test_native_layers_take_quantised_matrices_as_they_are(
    tmp_path: Path, name: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_trunk, "LEAST_WEIGHTS", 1)
    quantised = rewrite(tmp_path / "q8.gguf", Q8_0, name=name, trunk=Q8_0)
    pool = ComputePool(1, Kernels(1))
    found = load_trunk(quantised, dtype, pool=pool)
    assert "native kernels run all" in found.facts.program.describe()
    expected = logits_of(rewrite(tmp_path / "f32.gguf", Q8_0, name=name, trunk=Q8_0, stored_as=FLOAT32))
    difference = float((logits_of(quantised, pool, dtype) - expected).abs().max())
    assert difference < tolerance * float(expected.max() - expected.min())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen35moe", {"model.embed_tokens", "lm_head", "model.layers.0.linear_attn.out_proj"}),
        ("gemma4", {"model.embed_tokens"}),
        ("deepseek-v3", {"model.layers.0.self_attn.kv_b_proj"}),
    ],
)
def test_matrices_that_are_looked_up_tied_reordered_or_split_stay_quantised(
    tmp_path: Path, name: str, parameters: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_trunk, "LEAST_WEIGHTS", 1)
    checkpoint = GgufCheckpoint(tmp_path, rewrite(tmp_path / "q8.gguf", Q8_0, name=name, trunk=Q8_0).name)
    packed = checkpoint.packed_matrices(build_model(checkpoint.read_config(), torch.float32))
    assert {f"{each}.weight" for each in parameters} <= packed.keys()


def test_a_tied_head_takes_no_memory_beside_the_table_of_embeddings(tmp_path: Path) -> None:
    trunk = load_trunk(rewrite(tmp_path / "q8.gguf", Q8_0, name="gemma4", trunk=Q8_0), torch.float32)
    model = trunk._model
    assert model.get_input_embeddings().table is model.get_output_embeddings()


def test_an_expert_is_read_once_for_codes_and_scales(tmp_path: Path) -> None:
    trunk = load_trunk(rewrite(tmp_path / "q4.gguf", Q4_0), torch.float32)
    layout = trunk.catalog.layout(0)
    assert len(layout.parameters) == 6  # codes and scales of three matrices
    assert trunk.catalog.read_bytes(ExpertKey(0, 0)) == 3 * 32 * 18


def test_a_model_in_several_files_is_served_by_the_name_of_its_folder(tmp_path: Path) -> None:
    rewrite(tmp_path / "tiny.gguf", split=10)
    assert len(list(tmp_path.iterdir())) > 2
    found = find_local(str(tmp_path))
    assert found is not None
    path, name = found
    assert name == "tiny"
    assert torch.equal(logits_of(path), logits_of(FILES / f"{QUANTISED}.gguf"))


def test_a_missing_file_of_several_is_named(tmp_path: Path) -> None:
    rewrite(tmp_path / "tiny.gguf", split=10)
    first, last = (sorted(tmp_path.iterdir())[place] for place in (0, -1))
    last.unlink()
    with pytest.raises(CheckpointError, match=f"{last.name} is missing"):
        open_checkpoint(first).read_config()


def test_a_file_of_another_model_among_several_is_refused(tmp_path: Path) -> None:
    rewrite(tmp_path / "tiny.gguf", split=10)
    last = Path(shutil.copy(FILES / f"{QUANTISED}.gguf", max(tmp_path.iterdir())))
    with pytest.raises(CheckpointError, match=f"{last.name} is one of 1 files by its header"):
        open_checkpoint(min(tmp_path.iterdir())).read_config()


def test_a_folder_with_several_models_asks_which(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copy(FILES / f"{QUANTISED}.gguf", tmp_path / f"{name}.gguf")
    with pytest.raises(ModelError, match=r"2 models .*a\.gguf"):
        find_local(str(tmp_path))


def test_a_folder_with_safetensors_too_asks_which(tmp_path: Path) -> None:
    shutil.copy(FILES / f"{QUANTISED}.gguf", tmp_path / "a.gguf")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match=r"a model in safetensors and a\.gguf"):
        find_local(str(tmp_path))


def test_a_file_with_the_image_part_beside_the_model_is_named_and_left_out(tmp_path: Path) -> None:
    shutil.copy(FILES / f"{QUANTISED}.gguf", tmp_path / "tiny.gguf")
    (tmp_path / "mmproj-tiny.gguf").touch()
    found = find_local(str(tmp_path))
    assert found is not None
    assert found[0].name == "tiny.gguf"
    assert open_checkpoint(found[0]).notes() == ["mmproj-tiny.gguf is not used: images are not read from GGUF"]


def test_tensors_of_an_image_part_in_the_file_are_left_out(tmp_path: Path) -> None:
    path = rewrite(tmp_path / "tiny.gguf", renamed={"output_norm.weight": "v.post_norm.weight"})
    assert "the image part in the file (1 tensors) is not used" in open_checkpoint(path).notes()[0]
    with pytest.raises(ModelError, match=r"lacks model\.norm\.weight"):
        load_trunk(path, torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "bailingmoe2"}, "of the architecture bailingmoe2, which Greenroom does not read"),
        ({"general.architecture": "clip"}, "image part of a model"),
        ({"qwen3moe.attention.head_count": 0}, "num_attention_heads is 0"),
        ({"tokenizer.ggml.pre": "no-such"}, "by the rules of 'no-such'"),
        ({"tokenizer.ggml.eos_token_id": 288}, "is 288, not one of 288 tokens"),
        ({"tokenizer.ggml.tokens": ["a"]}, "1 tokens, but its table of embeddings 288"),
        ({"qwen3moe.rope.freq_base": 0.0}, r"tiny\.gguf can't be used: rope\.freq_base is 0, not a number above 1"),
        ({"qwen3moe.rope.freq_base": float("nan")}, "freq_base is nan, not a number above 1, up to"),
        ({"qwen3moe.block_count": 1 << 31}, "block_count is 2147483648, not a whole number from 1 to 1000"),
    ],
)
def test_metadata_that_can_not_be_used_is_refused_with_what_is_wrong(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    checkpoint = open_checkpoint(rewrite(tmp_path / "tiny.gguf", changes=changes))
    with pytest.raises(ModelError, match=message):
        _ = checkpoint.read_config(), checkpoint.load_tokenizer()


@pytest.mark.parametrize(
    ("changes", "factors", "message"),
    [
        ({}, [1.0, 2.0, -1.0, 4.0], "rope_freqs.weight of .* holds a factor that is not positive"),
        ({}, [[1.0, 2.0, 3.0, 4.0]], "is not a row of float32 factors"),
        (
            {"llama4.rope.scaling.type": "yarn", "llama4.rope.scaling.factor": 4.0},
            [1.0, 2.0, 3.0, 4.0],
            "has both rope_freqs.weight and llama4.rope.scaling",
        ),
    ],
)
def test_factors_of_rotary_frequencies_that_can_not_be_used_are_refused(
    tmp_path: Path, changes: dict[str, Any], factors: list[Any], message: str
) -> None:
    other = {"rope_freqs.weight": np.array(factors, np.float32)}
    path = rewrite(
        tmp_path / "tiny.gguf", name="llama4", changes=changes, renamed={"rope_freqs.weight": None}, added=other
    )
    with pytest.raises(ModelError, match=message):
        GgufCheckpoint(path.parent, path.name).read_config()


@pytest.mark.hypothesis
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_values_of_any_kind_give_a_model_or_a_refusal(data: st.DataObject) -> None:
    """Each entry of the metadata has another value, or none."""
    file = GgufFile.open(FILES, f"{QUANTISED}.gguf")
    values = st.sampled_from(
        [0, -1, 3, 1 << 40, 0.5, True, "", "text", ["a", "b"], np.array([1, 2]), np.array([0.5]), None]
    )
    keys = data.draw(st.lists(st.sampled_from(sorted(file.metadata)), min_size=1, max_size=3, unique=True))
    changed = {key: value for key in keys if (value := data.draw(values)) is not None}
    metadata = {key: value for key, value in file.metadata.items() if key not in keys} | changed
    checkpoint = GgufCheckpoint(FILES, file.name)
    checkpoint.__dict__["_file"] = replace(file, metadata=metadata)
    with suppress(ModelError, CheckpointError):
        checkpoint.read_config()
    with suppress(ModelError, CheckpointError):
        checkpoint.generation_values()


@pytest.mark.parametrize(
    ("renamed", "error", "message"),
    [
        ({"blk.0.attn_q.weight": "blk.0.attn_other.weight"}, ModelError, "has blk.0.attn_other.weight, which"),
        ({"blk.0.ffn_up_exps.weight": None}, CheckpointError, "has no tensor for up_proj|needs"),
        ({"blk.1.attn_norm.weight": None}, ModelError, "lacks model.layers.1.input_layernorm.weight"),
    ],
)
def test_tensors_that_are_unknown_or_missing_are_named(
    tmp_path: Path, renamed: dict[str, str | None], error: type[Exception], message: str
) -> None:
    path = rewrite(tmp_path / "tiny.gguf", renamed=renamed)
    with pytest.raises(error, match=message):
        load_trunk(path, torch.float32)
