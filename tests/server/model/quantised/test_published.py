"""Published checkpoints: in many files, with tied embeddings, with tensors that the model does not use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from expert_store import ExpertStore, find_shards, least_bytes
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint, save_checkpoint
from tests.families import make_config
from tests.server.model.test_parity import generate

pytestmark = pytest.mark.slow


def logits(folder: Path) -> torch.Tensor:
    trunk = load_trunk(folder, torch.float32)
    store = ExpertStore(trunk.catalog, least_bytes(trunk.catalog, trunk.facts.top_k))
    rows = torch.cat([row for _, row in generate(trunk, store, steps=3)])
    store.close()
    return rows


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_many_files_are_as_good_as_one(name: str, tmp_path: Path) -> None:
    """The size limit of files may split the tensors of an expert."""
    complete = make_checkpoint(name, tmp_path / "complete")
    model = transformers.AutoModelForCausalLM.from_pretrained(complete, dtype=torch.float32)
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(find_shards(tmp_path / "parts")) > 5
    assert torch.equal(logits(tmp_path / "parts"), logits(complete))


@pytest.mark.parametrize("name", ["qwen3_moe", "olmoe", "cohere2_moe"])
def test_the_output_layer_may_be_the_embeddings(name: str, tmp_path: Path) -> None:
    config = make_config(name)
    config.tie_word_embeddings = True
    save_checkpoint(config, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    trunk = load_trunk(tmp_path, torch.float32)
    assert trunk._model.lm_head.weight is trunk._model.model.embed_tokens.weight
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    tokens, found = generate(trunk, store, steps=1)[0]
    store.close()
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        expected = reference(torch.tensor([[5, 17, 99, 3, 42, 8, 64]]), use_cache=False).logits[0, -1]
    assert tokens == [int(expected.argmax())]
    assert float((found[0] - expected).abs().max()) < 1e-5 * float(expected.max() - expected.min())


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe"])
def test_a_multi_token_prediction_layer_is_ignored(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """DeepSeek and GLM have it after the last layer, with its own experts."""
    save_checkpoint(make_config(name), tmp_path)
    expected = logits(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    last = {name: tensor.clone() for name, tensor in tensors.items() if name.startswith("model.layers.2.")}
    further = {re.sub(r"layers\.2\.", "layers.3.", name): tensor for name, tensor in last.items()}
    further["model.layers.3.eh_proj.weight"] = torch.zeros(32, 64)
    save_file({**tensors, **further}, tmp_path / "model.safetensors", {"format": "pt"})
    caplog.clear()
    assert torch.equal(logits(tmp_path), expected)
    assert f"{name} does not use {len(further)} tensors: model.layers.3." in caplog.text


def test_multimodal_experts_may_be_transposed(tmp_path: Path) -> None:
    """The published Qwen3-VL-MoE has them transposed, but transformers saves them the other way."""
    save_checkpoint(make_config("qwen3_vl_moe"), tmp_path)
    expected = logits(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    experts = {name: tensor.mT.contiguous() for name, tensor in tensors.items() if ".mlp.experts." in name}
    assert experts
    save_file({**tensors, **experts}, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(logits(tmp_path), expected)


def test_kimi_k25_has_layers_where_transformers_saves_blocks(tmp_path: Path) -> None:
    save_checkpoint(make_config("kimi_k25"), tmp_path)
    expected = logits(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace(".model.blocks.", ".model.layers."): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(logits(tmp_path), expected)


@pytest.mark.parametrize("as_published", [True, False], ids=["experts", "stacks"])
def test_longcat_may_have_weights_of_experts_that_compute_nothing(as_published: bool, tmp_path: Path) -> None:
    """Transformers before 5.25 saved gate and up of these, which published checkpoints lack."""
    config = make_config("longcat_flash")
    config.zero_expert_num = 2
    published = save_checkpoint(config, tmp_path / "published", as_published=as_published)
    expected = logits(published)
    tensors = load_file(published / "model.safetensors")
    for name, tensor in list(tensors.items()):
        if name.endswith("experts.gate_up_proj"):
            tensors[name] = torch.cat((tensor, torch.randn_like(tensor[:2])))
        elif re.search(r"experts\.7\.(gate|up)_proj", name):
            for expert in ("8", "9"):
                tensors[name.replace("experts.7.", f"experts.{expert}.")] = torch.randn_like(tensor)
    save_file(tensors, published / "model.safetensors", {"format": "pt"})
    assert torch.equal(logits(published), expected)
