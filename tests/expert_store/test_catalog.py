"""A catalog checks all recipes when it is built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from expert_store import (
    CheckpointError,
    ExpertCatalog,
    ExpertLayout,
    LayerEntry,
    ParameterRecipe,
    ParameterSpec,
    read_index,
    read_tensor,
)
from tests.expert_store.files import make_catalog


def damaged(catalog: ExpertCatalog, recipe: dict[str, ParameterRecipe]) -> dict[int, LayerEntry]:
    """Return the catalog's layers with expert 3 of layer 1 replaced."""
    experts = list(catalog.layers[1].experts)
    experts[3] = recipe
    return {**catalog.layers, 1: replace(catalog.layers[1], experts=tuple(experts))}


def test_a_missing_parameter_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expert 3 of layer 1 has no tensor for gate_up"):
        ExpertCatalog(damaged(make_catalog(tmp_path), {}))


def test_a_missing_half_is_named(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    half = ParameterRecipe(catalog.layers[1].experts[3]["gate_up"].sources[:1])
    with pytest.raises(
        CheckpointError, match=r"1\.3\.gate: 96 bytes for gate_up of expert 3 of layer 1, which takes 192"
    ):
        ExpertCatalog(damaged(catalog, {"gate_up": half}))


def test_another_dtype_is_named(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    sources = tuple(replace(s, dtype=torch.int32) for s in catalog.layers[1].experts[3]["gate_up"].sources)
    with pytest.raises(CheckpointError, match=r"1\.3\.gate is torch\.int32"):
        ExpertCatalog(damaged(catalog, {"gate_up": ParameterRecipe(sources)}))


def test_a_model_without_experts_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no routed experts"):
        ExpertCatalog({})


def test_tensors_of_a_slot_are_aligned_and_apart() -> None:
    layout = ExpertLayout(
        (
            ParameterSpec("a", torch.bfloat16, (3, 5)),
            ParameterSpec("b", torch.float32, (33,)),
            ParameterSpec("c", torch.int8, (1,)),
        )
    )
    assert layout.offsets == {"a": 0, "b": 64, "c": 256}
    assert layout.slot_bytes == 4096  # a multiple of a page


@pytest.mark.parametrize("rows", [4, 12])
def test_the_parts_of_a_tensor_are_its_rows_one_after_the_other(rows: int, tmp_path: Path) -> None:
    whole = torch.arange(rows * 3, dtype=torch.int16).view(rows, 3)
    save_file({"before": torch.zeros(5), "whole": whole}, tmp_path / "a.safetensors")
    source = read_index([tmp_path / "a.safetensors"])["whole"]
    parts = [read_tensor(source.leading_part(index, 4)) for index in range(4)]
    assert {part.shape for part in parts} == {(rows // 4, 3)}
    assert torch.equal(torch.cat(parts), whole)
