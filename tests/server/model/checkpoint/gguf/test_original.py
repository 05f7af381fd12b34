"""A GGUF file takes config and tokenizer from the model that it was made from (``--config-from``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from expert_store import ExpertStore
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.locate import BUNDLED
from server.model.errors import ModelError
from server.model.opening.gguf_checkpoint import GgufCheckpoint
from server.model.opening.open_checkpoint import open_checkpoint
from server.model.trunk_loader import load_trunk
from tests.gguf.models import FILES, make_checkpoint
from tests.server.model.checkpoint.gguf.test_gguf_checkpoint import PROMPT, TEXT, rewrite
from tests.server.model.test_parity import generate


def change(folder: Path, **values: Any) -> None:
    """Change values of a config."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def logits_of(checkpoint: GgufCheckpoint) -> torch.Tensor:
    trunk = load_trunk(checkpoint, torch.float32)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    [(_, logits)] = generate(trunk, store, steps=1, prompts=[PROMPT])
    store.close()
    return logits[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "qwen35moe", "gpt-oss", "nemotron_h_moe", "qwen3vlmoe"])
def test_tensors_are_converted_by_the_config_of_a_quantised_original(name: str, tmp_path: Path) -> None:
    make_checkpoint(name, tmp_path)
    change(tmp_path, quantization_config={"quant_method": "mxfp4"})
    found = logits_of(GgufCheckpoint(FILES, f"{name}.gguf", FolderCheckpoint(tmp_path)))
    assert torch.equal(found, logits_of(GgufCheckpoint(FILES, f"{name}.gguf")))


def test_the_config_of_the_original_counts_more_than_the_metadata(tmp_path: Path) -> None:
    change(make_checkpoint("qwen3moe", tmp_path), rms_norm_eps=0.125)
    found = GgufCheckpoint(FILES, "qwen3moe.gguf", FolderCheckpoint(tmp_path)).read_config()
    assert found.rms_norm_eps == 0.125


def test_a_file_whose_tokenizer_is_unknown_takes_that_of_the_original(tmp_path: Path) -> None:
    original = FolderCheckpoint(make_checkpoint("qwen3moe", tmp_path / "original"))
    path = rewrite(tmp_path / "tiny.gguf", changes={"tokenizer.ggml.pre": "no-such"})
    with pytest.raises(ModelError, match="--config-from"):
        GgufCheckpoint(path.parent, path.name).load_tokenizer()
    assert GgufCheckpoint(path.parent, path.name, original).load_tokenizer().encode(
        TEXT
    ) == original.load_tokenizer().encode(TEXT)


def test_the_sampling_of_the_original_counts(tmp_path: Path) -> None:
    make_checkpoint("qwen3moe", tmp_path)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.5}')
    values = GgufCheckpoint(FILES, "qwen3moe.gguf", FolderCheckpoint(tmp_path)).generation_values()
    assert values == {"temperature": 0.5}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_hidden_layers": 3}, "it has 3 layers, the file 2"),
        (
            {"num_key_value_heads": 1},
            r"k_proj.weight of .*\.gguf has the shape \[32, 32\], but the config needs \[16, 32\]",
        ),
        ({"num_experts": 8, "num_local_experts": 8}, "expert 4 has no tensor"),
        ({"attention_bias": True}, "the file lacks model.layers.0.self_attn.k_proj.bias"),
        ({"vocab_size": 289}, r"weight of .*\.gguf has the shape \[288, 32\], but the config needs \[289, 32\]"),
    ],
)
def test_the_config_of_another_model_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    change(make_checkpoint("qwen3moe", tmp_path), **changes)
    with pytest.raises(ModelError, match=rf"qwen3moe.gguf was not made from {tmp_path}: .*({reason}).*--config-from"):
        load_trunk(GgufCheckpoint(FILES, "qwen3moe.gguf", FolderCheckpoint(tmp_path)), torch.float32)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    checkpoint = GgufCheckpoint(FILES, "qwen3moe.gguf", FolderCheckpoint(BUNDLED))
    with pytest.raises(ModelError, match=r"its tokenizer has \d+ tokens, the file's table of embeddings 288"):
        checkpoint.load_tokenizer()


def test_a_model_with_a_config_takes_no_other() -> None:
    with pytest.raises(ModelError, match="leave --config-from out"):
        open_checkpoint(BUNDLED, BUNDLED)
