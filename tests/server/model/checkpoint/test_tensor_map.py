"""Tensors of a large checkpoint are sorted without a search for each expert's names."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from transformers import OlmoeConfig

from expert_store import Extent, FileSource, TensorSource
from server.model.checkpoint import tensor_map
from server.model.checkpoint.locate import BUNDLED
from server.model.checkpoint.tensor_map import map_checkpoint
from server.model.trunk_loader import build_model

NUM_EXPERTS = 500


def test_names_are_searched_once_for_all_experts_of_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    config = OlmoeConfig(
        vocab_size=8, hidden_size=4, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, num_experts=NUM_EXPERTS, num_experts_per_tok=2,
    )  # fmt: skip
    rename, calls = tensor_map.rename_source_key, count()

    def counted(*given: object) -> object:
        next(calls)
        return rename(*given)

    monkeypatch.setattr(tensor_map, "rename_source_key", counted)
    shapes = {"gate_proj": (2, 4), "up_proj": (2, 4), "down_proj": (4, 2)}
    tensors = [
        TensorSource(f"model.layers.0.mlp.experts.{expert}.{name}.weight", torch.bfloat16, shape, extent)
        for expert in range(NUM_EXPERTS)
        for place, (name, shape) in enumerate(shapes.items())
        for extent in [Extent(FileSource(BUNDLED), 48 * expert + 16 * place, 16)]
    ]
    catalog = map_checkpoint(build_model(config, torch.bfloat16), {each.name: each for each in tensors}).catalog
    gate_up = catalog.layers[0].experts[321]["gate_up_proj"].sources  # type: ignore[index]
    assert [each.name.split(".")[5:7] for each in gate_up] == [["321", "gate_proj"], ["321", "up_proj"]]
    assert next(calls) < 50
