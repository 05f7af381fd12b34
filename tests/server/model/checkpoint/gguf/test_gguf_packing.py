"""GGUF files are packed: the packs have the numbers and the tokenizer of the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expert_store import CheckpointError
from server.model.checkpoint.locate import find_checkpoint
from server.model.errors import ModelError
from server.model.opening.open_checkpoint import open_checkpoint
from server.model.trunk_loader import load_trunk
from tests.gguf.models import FILES, TEMPLATE, make_checkpoint
from tests.packed_models import pack_model
from tests.server.model.checkpoint.gguf.test_gguf_checkpoint import Q4_0, Q8_0, TEXT, logits_of, rewrite


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3moe", "qwen35moe", "gpt-oss", "gemma4"])
def test_a_bfloat16_pack_has_the_logits_of_the_file(name: str, tmp_path: Path) -> None:
    found = logits_of(pack_model(FILES / f"{name}.gguf", tmp_path / "out"))
    expected = logits_of(FILES / f"{name}.gguf")
    assert float((found - expected).abs().max()) < 2e-3 * float(expected.max() - expected.min())


@pytest.mark.parametrize("name", ["qwen3moe", "qwen35moe", "gpt-oss", "gemma4", "deepseek-v3", "llama4"])
def test_an_unchanged_pack_has_the_bits_of_the_file(name: str, tmp_path: Path) -> None:
    path = rewrite(tmp_path / "q.gguf", Q4_0, name=name, trunk=Q8_0)
    assert torch.equal(logits_of(pack_model(path, tmp_path / "out", "unchanged")), logits_of(path))


def test_an_unchanged_pack_is_described_by_the_types_of_the_file(tmp_path: Path) -> None:
    path = rewrite(tmp_path / "q.gguf", Q4_0, trunk=Q8_0)
    pack, _ = find_checkpoint(str(pack_model(path, tmp_path / "out", "unchanged")), None)
    assert open_checkpoint(pack).describe().weights == open_checkpoint(path).describe().weights


def test_weights_stay_unchanged_in_packs_of_gguf_alone(tmp_path: Path) -> None:
    checkpoint = make_checkpoint("qwen3moe", tmp_path / "tiny")
    with pytest.raises(ModelError, match="is no GGUF file; give --weights bfloat16, int8 or int4"):
        pack_model(checkpoint, tmp_path / "out", "unchanged")


@pytest.mark.parametrize("content", ["{}", '{"trunk": {"lm_head.weight": {"type": "Q9", "tensors": []}}}'])
def test_a_damaged_list_of_types_is_refused(content: str, tmp_path: Path) -> None:
    pack = pack_model(rewrite(tmp_path / "q.gguf", Q4_0, trunk=Q8_0), tmp_path / "out", "unchanged")
    [types] = pack.rglob("gguf_types.json")
    types.write_text(content)
    with pytest.raises(CheckpointError, match="gguf_types"):
        load_trunk(pack, torch.float32)


def test_a_pack_of_a_quantised_file_has_what_its_numbers_stand_for(tmp_path: Path) -> None:
    path = rewrite(tmp_path / "q.gguf", Q4_0, trunk=Q8_0)
    found, expected = logits_of(pack_model(path, tmp_path / "out")), logits_of(path)
    assert torch.cosine_similarity(found, expected, dim=-1).min() > 0.99


def test_a_pack_has_the_tokenizer_and_the_template_of_the_file(tmp_path: Path) -> None:
    path = FILES / "qwen3moe.gguf"
    pack, _ = find_checkpoint(str(pack_model(path, tmp_path / "out")), None)
    found = open_checkpoint(pack)
    assert found.load_tokenizer().encode(TEXT) == open_checkpoint(path).load_tokenizer().encode(TEXT)
    assert found.load_tokenizer().chat_template == TEMPLATE
    assert found.generation_values() == open_checkpoint(path).generation_values()
