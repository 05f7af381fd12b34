"""Small safetensors files of experts, whose values identify layer, expert and half."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from expert_store import (
    ExpertCatalog,
    ExpertLayout,
    LayerEntry,
    ParameterRecipe,
    ParameterSpec,
    Source,
    find_shards,
    read_index,
)

ROWS, COLUMNS = 4, 6


def matrix(layer: int, expert: int, part: int) -> torch.Tensor:
    return torch.full((ROWS, COLUMNS), layer * 100.0 + expert + part / 10)


def make_catalog(
    folder: Path, num_layers: int = 2, num_experts: int = 8, wrap: Callable[[Source], Source] = lambda source: source
) -> ExpertCatalog:
    """Return a catalog of experts of two halves, stacked in a slot, with one file per layer.

    Args:
        wrap: what the experts are read from, for a file.
    """
    for layer in range(num_layers):
        tensors = {
            f"{layer}.{expert}.{half}": matrix(layer, expert, part)
            for expert in range(num_experts)
            for part, half in enumerate(("gate", "up"))
        }
        save_file(tensors, folder / f"layer{layer}.safetensors")
    index = {
        name: replace(found, extent=replace(found.extent, source=wrap(found.extent.source)))
        for name, found in read_index(find_shards(folder)).items()
    }
    layout = ExpertLayout((ParameterSpec("gate_up", torch.float32, (2 * ROWS, COLUMNS)),))

    def recipe(layer: int, expert: int) -> dict[str, ParameterRecipe]:
        return {"gate_up": ParameterRecipe((index[f"{layer}.{expert}.gate"], index[f"{layer}.{expert}.up"]))}

    return ExpertCatalog(
        {
            layer: LayerEntry(layout, tuple(recipe(layer, expert) for expert in range(num_experts)))
            for layer in range(num_layers)
        }
    )


def expected(layer: int, expert: int) -> torch.Tensor:
    return torch.cat([matrix(layer, expert, 0), matrix(layer, expert, 1)])
