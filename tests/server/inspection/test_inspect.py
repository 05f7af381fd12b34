"""`greenroom inspect` finds the same as serving the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from expert_store import ExpertStore, catalog, read_index, write_pack
from server.byte_sizes import format_bytes
from server.inspection import inspect_model as inspection
from server.inspection import memory_fit
from server.inspection.hub_metadata import header_bytes
from server.inspection.inspect_model import inspect_model
from server.inspection.memory_fit import fit_memory
from server.inspection.model_summary import ModelSummary, summarise_model
from server.inspection.report import as_text
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.loading.memory import needs_of_trunk
from server.memory.plan import PROCESS_BYTES, plan_memory
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.locate import find_checkpoint
from server.model.checkpoint.read_config import read_config
from server.model.errors import ModelError
from server.model.from_config.shapes import infer_shapes
from server.model.model_building import build_model
from server.model.opening.packing import pack_source
from server.model.trunk_loader import load_trunk
from server.setting_values import parse_budget
from server.settings import BATCHED_TOKENS, ServeSettings
from tests.checkpoints import CONFIGS, make_checkpoint, save_checkpoint
from tests.families import make_config
from tests.gguf.models import FILES

CPU = torch.device("cpu")
SETTINGS = ServeSettings.model_validate({"dtype": "float32", "host_expert_memory": "50%", "max_running_requests": 2})


def look(folder: Path) -> ModelSummary:
    return summarise_model(str(folder), SETTINGS, CPU)


def headers_of(checkpoint: Path, folder: Path) -> Path:
    """A copy of a checkpoint without its tensors' bytes."""
    folder.mkdir()
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
            continue
        raw = path.read_bytes()
        (folder / path.name).write_bytes(raw[: 8 + int.from_bytes(raw[:8], "little")])
    return folder


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measured bandwidths by known ones."""
    monkeypatch.setattr(inspection, "measure_disk", lambda catalog: 2e6)
    monkeypatch.setattr(inspection, "measure_record_gain", lambda catalog: None)
    monkeypatch.setattr(inspection, "measure_memory", lambda device, matrix: 1e7)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_an_outline_has_the_bytes_groups_and_top_k_of_the_loaded_trunk(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    folder = make_checkpoint(name, tmp_path, dtype)
    trunk, shape = load_trunk(folder, dtype), infer_shapes(read_config(folder), dtype)
    assert shape.trunk_bytes == trunk.nbytes
    assert shape.kv_groups == trunk.facts.kv_groups
    assert max(shape.top_k.values()) == trunk.facts.top_k
    assert list(shape.top_k) == list(trunk.catalog.layers)
    assert shape.max_model_len == trunk.max_model_len


def test_tied_embeddings_count_once_and_every_token_reads_them() -> None:
    config = CONFIGS["qwen3_moe"]()
    table = config.vocab_size * config.hidden_size * 4
    untied = infer_shapes(config, torch.float32)
    config.tie_word_embeddings = True
    tied = infer_shapes(config, torch.float32)
    assert untied.trunk_bytes - tied.trunk_bytes == table
    assert untied.active_trunk_bytes == tied.active_trunk_bytes == tied.trunk_bytes


def test_a_token_reads_only_the_chosen_of_experts_in_the_trunk() -> None:
    config = make_config("jetmoe")
    shape = infer_shapes(config, torch.float32)
    experts = (
        3 * 2 * config.num_local_experts * config.hidden_size * config.num_key_value_heads * config.kv_channels * 4
    )
    assert config.num_experts_per_tok == 2
    assert shape.trunk_bytes - shape.active_trunk_bytes == experts * 6 // 8


@pytest.mark.slow
def test_a_model_of_hundreds_of_gigabytes_is_outlined_without_its_weights() -> None:
    shape = infer_shapes(transformers.DeepseekV3Config(), torch.bfloat16)
    assert shape.trunk_bytes > 30e9
    assert shape.kv_groups[0].token_bytes == 61 * (512 + 64) * 2  # a latent and a rotated key in each layer
    assert set(shape.top_k.values()) == {8}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_headers_or_config_alone_give_the_sizes_of_the_complete_checkpoint(tmp_path: Path, name: str) -> None:
    whole = make_checkpoint(name, tmp_path / "whole")
    headers = headers_of(whole, tmp_path / "headers")
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "config.json").write_bytes((whole / "config.json").read_bytes())
    found = [look(folder) for folder in (whole, headers, alone)]
    assert [each.source for each in found] == ["checkpoint", "headers", "config"]
    assert len({each.outline.trunk_bytes for each in found}) == 1
    assert len({each.active_expert_bytes for each in found}) == 1
    assert len({(each.num_experts, each.catalog.total_bytes) for each in found}) == 1


def test_a_packed_folder_has_the_bytes_of_its_records(tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path / "model", torch.bfloat16)
    source = pack_source(build_model(read_config(folder), torch.bfloat16), FolderCheckpoint(folder), "mine", "int8")
    write_pack(source, tmp_path / "packed", 1, lambda nbytes: None)
    found = look(tmp_path / "packed")
    assert (found.name, found.source) == ("mine", "packed")
    assert found.catalog.total_bytes == source.record_bytes


def test_inspect_and_serve_make_the_same_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_fit, "host_budget", lambda _: 1 << 30)
    folder = make_checkpoint("gpt_oss", tmp_path)
    kernels = Kernels(1) if availability().runnable else None
    trunk, found = load_trunk(folder, torch.float32, pool=ComputePool(1, kernels)), look(folder)
    predicted = fit_memory(found, SETTINGS, CPU)
    served = plan_memory(SETTINGS, needs_of_trunk(trunk), CPU, 1 << 30, PROCESS_BYTES)
    store = ExpertStore(trunk.catalog, served.host_bytes)
    try:
        assert predicted.host_slots == store.tiers()["host"].num_slots == 12
    finally:
        store.close()
        if kernels is not None:
            kernels.close()
    assert predicted.memory.kv == served.kv


@pytest.mark.slow
@pytest.mark.usefixtures("instant")
def test_a_sequential_model_is_reported_with_the_reason(tmp_path: Path) -> None:
    folder = save_checkpoint(make_config("switch_transformers"), tmp_path)
    report, trunk = inspect_model(str(folder), SETTINGS), load_trunk(folder, torch.float32)
    assert report["solo_reason"] == trunk.facts.program.sequential_reason
    assert f"computed one after the other, since {report['solo_reason']}" in as_text(report)
    assert report["kv_cache"]["bytes_per_token"] == trunk.facts.token_bytes
    assert report["kv_cache"]["bytes_per_sequence"] == trunk.facts.state_bytes
    (group,) = report["kv_cache"]["groups"]
    assert group["num_layers"] >= 3
    assert not group["is_latent"]


@pytest.mark.usefixtures("instant")
def test_bounds_follow_from_bytes_and_bandwidths(tmp_path: Path) -> None:
    report = inspect_model(str(make_checkpoint("qwen3_moe", tmp_path)), SETTINGS)
    token, bounds = report["bytes_per_token"], report["tokens_per_second"]
    assert token["experts"] == 3 * 2 * report["experts"]["bytes_each"][0]
    assert token["total"] == token["trunk"] + token["experts"]
    assert bounds["all_in_memory"] == pytest.approx(1e7 / token["total"])
    assert bounds["uniform_routing"] == pytest.approx(2e6 / (0.5 * token["experts"]))
    assert [entry["hit_ratio"] for entry in bounds["by_hit_ratio"]] == [0.5, 0.75, 0.9, 0.95, 0.99, 1.0]
    assert json.loads(json.dumps(report)) == report


@pytest.mark.usefixtures("instant")
@pytest.mark.parametrize(
    ("gain", "told"),
    [
        (None, ""),
        (0.01, "a miss         3 reads, which take no longer than one"),
        (0.25, "a miss         3 reads; `greenroom pack` or --repack-cache would make it one, 25% faster: at most"),
    ],
)
def test_experts_whose_parts_lie_apart_are_told_with_the_gain_of_records(
    monkeypatch: pytest.MonkeyPatch, gain: float | None, told: str
) -> None:
    monkeypatch.setattr(catalog, "MAX_GAP_BYTES", -1)  # the parts of so small experts lie close together
    monkeypatch.setattr(inspection, "measure_disk", lambda catalog: 2e5)
    monkeypatch.setattr(inspection, "measure_record_gain", lambda catalog: gain)
    report = inspect_model(str(FILES / "qwen3moe.gguf"), SETTINGS)
    lines = [line.strip() for line in as_text(report).splitlines()]
    assert [line for line in lines if line.startswith("a miss")] == [
        line for line in lines if told and line.startswith(told)
    ]
    before = report["tokens_per_second"]["uniform_routing"]
    assert report["miss"]["with_records"] == pytest.approx(before * (1 + (gain or 0)))


@pytest.mark.usefixtures("instant")
def test_a_chunk_or_pass_of_prompts_reads_experts_that_are_not_in_memory(tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path)
    report = inspect_model(str(folder), SETTINGS.model_copy(update={"max_batched_tokens": 2048, "prefill": "chunks"}))
    missing = report["experts"]["total_bytes"] // 2
    piece = {"num_tokens": 2048, "is_pass": False, "missing_bytes": missing, "disk_seconds": missing / 2e6}
    assert report["prompt_piece"] == piece
    assert "in 0.1 s per 2048 tokens (--max-batched-tokens)" in as_text(report)
    by_passes = inspect_model(str(folder), SETTINGS)
    assert by_passes["prompt_piece"]["missing_bytes"] == missing
    assert f"in 0.1 s per {2 * BATCHED_TOKENS} tokens (--prefill)" in as_text(by_passes)
    all_in_memory = inspect_model(str(folder), SETTINGS.model_copy(update={"host_expert_memory": parse_budget("100%")}))
    assert all_in_memory["prompt_piece"]["missing_bytes"] == 0
    assert "a prompt reads" not in as_text(all_in_memory)


@pytest.mark.usefixtures("instant")
def test_steps_that_copy_experts_to_a_device_are_in_the_table(tmp_path: Path) -> None:
    folder, tokens = make_checkpoint("qwen3_moe", tmp_path), "2048 tokens a step (--max-batched-tokens)"
    for share, is_told in (("50%", True), ("100%", False)):
        changes = {"max_batched_tokens": 2048, "prefill": "chunks", "device_expert_memory": parse_budget(share)}
        text = as_text(inspect_model(str(folder), SETTINGS.model_copy(update=changes)))
        assert (tokens in text) == is_told


@pytest.mark.usefixtures("instant")
def test_a_trunk_larger_than_memory_is_reported_with_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_fit, "host_budget", lambda _: 1000)
    report = inspect_model(str(make_checkpoint("qwen3_moe", tmp_path)), SETTINGS)
    assert not report["trunk_fits"]
    assert report["trunk_bytes"] > 1000
    assert report["tiers"]["host"] == {"budget_bytes": 0, "slots": 0}
    assert report["refusal"].startswith("the model does not fit: its trunk needs ")
    assert f"least budget   {format_bytes(report['memory']['least_bytes'])} in which" in as_text(report)


@pytest.mark.usefixtures("instant")
def test_a_budget_that_was_raised_is_noted(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"host_expert_memory": parse_budget("1%")})
    report = inspect_model(str(make_checkpoint("qwen3_moe", tmp_path)), settings)
    (note,) = report["notes"]
    assert note.startswith("--host-expert-memory 1% is ")
    assert note.endswith(" the minimum for the 2 experts of a token")
    assert f"note           {note}" in as_text(report)


@pytest.mark.slow
@pytest.mark.usefixtures("instant")
def test_the_table_shows_windows_latents_and_unused_tensors(tmp_path: Path) -> None:
    text = as_text(inspect_model(str(make_checkpoint("gpt_oss", tmp_path / "a")), SETTINGS))
    assert "1 layers attend to all tokens" in text
    assert "2 layers attend to the last 6 tokens" in text
    text = as_text(inspect_model(str(make_checkpoint("llama4_text", tmp_path / "llama")), SETTINGS))
    assert "1 layers attend to all tokens" in text
    assert "3 layers attend to their chunk of 6 tokens" in text
    folder = make_checkpoint("deepseek_v3", tmp_path / "b")
    headers = headers_of(folder, tmp_path / "c")
    (headers / "extra.safetensors").write_bytes(
        header_bytes({"mtp.x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    )
    text = as_text(inspect_model(str(headers), SETTINGS))
    assert "as latents" in text
    assert "1 tensors of the files" in text


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes))


def drop(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")


def in_mistral_format(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "consolidated-00001-of-00001.safetensors")
    (folder / "config.json").rename(folder / "params.json")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: edit_config(folder, quantization_config={"quant_method": "nonesuch"}), "nonesuch"),
        (lambda folder: edit_config(folder, model_type="nonesuch"), "nonesuch"),
        (lambda folder: edit_config(folder, moe_intermediate_size=25), "convert to shape"),
        (lambda folder: edit_config(folder, vocab_size=64), "vocab_size is 64"),
        (
            lambda folder: drop(folder, "model.layers.1.self_attn.q_proj.weight"),
            "lacks model.layers.1.self_attn.q_proj",
        ),
        (lambda folder: drop(folder, "model.layers.1.mlp.experts.3.up_proj.weight"), "bytes for gate_up_proj of|needs"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: edit_config(folder, quantization={"group_size": 64, "bits": 6}), "is in MLX's format"),
        (in_mistral_format, r"is in Mistral's own format \(params.json, consolidated-00001.*\), which transformers"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "pickled weights alone"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"?" * 100), "header"),
    ],
)
def test_unusable_models_are_refused_as_by_serving(tmp_path: Path, spoil: Any, reason: str) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path)
    spoil(folder)
    refusals = []
    for attempt in (lambda: look(folder), lambda: load_trunk(find_checkpoint(str(folder), None)[0], torch.float32)):
        with pytest.raises(Exception, match=reason) as refusal:
            attempt()
        refusals.append((refusal.type, str(refusal.value)))
    assert refusals[0] == refusals[1]


def test_a_file_cut_inside_its_tensors_is_damaged_and_not_taken_for_headers(tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Exception, match="the file is cut short"):
        look(folder)


def test_a_header_alone_is_read_only_when_asked_for(tmp_path: Path) -> None:
    header = header_bytes({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})
    (tmp_path / "a.safetensors").write_bytes(header)
    assert read_index([tmp_path / "a.safetensors"], has_data=False)["x"].shape == (2,)
    with pytest.raises(Exception, match="cut short"):
        read_index([tmp_path / "a.safetensors"])


def test_a_config_with_more_outputs_than_any_layer_has_is_refused_without_their_memory(tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path / "tiny")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"num_attention_heads": 1 << 18, "head_dim": 1 << 12}))
    with pytest.raises(ModelError, match=r"describes a layer with outputs of the shape \[1, 2, 1073741824\]"):
        look(folder)
