"""The experts of a model whose config is all that is known of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from expert_store import ExpertCatalog, ExpertLayout, Extent, LayerEntry, PackedRecord, ParameterSpec
from server.kernels.expert import transposed_names

from .checkpoint_map import experts_modules, layer_numbers
from .dtype import stored_dtype
from .quantised.matrix import Scheme
from .quantised.scheme import find_scheme

MATRIX_DIMENSIONS = 2


def catalog_of_shapes(model: Any) -> ExpertCatalog:
    """A catalog of experts that lie nowhere yet, to count with.

    Experts are in the dtype that the config names, or quantised as it says; which of them are not, it does not tell.

    Args:
        model: on the meta device, its experts' parameters still in place.
    """
    dtype = stored_dtype(model.config)
    scheme = find_scheme(model.config, type(model).__name__)
    modules = experts_modules(model)
    numbers, halves = layer_numbers(list(modules)), _num_sources(model)
    layers = {}
    for name, module in modules.items():
        specs: list[ParameterSpec] = []
        for parameter, value in module.named_parameters(recurse=False):
            shape = tuple(value.shape[1:])
            if scheme is None or len(shape) != MATRIX_DIMENSIONS:
                specs.append(ParameterSpec(parameter, dtype, shape))
            else:
                out_in = shape[::-1] if parameter in transposed_names(module) else shape
                specs.extend(_quantised(scheme, parameter, out_in, halves.get(parameter, 1)))
        layout = ExpertLayout(tuple(specs))
        nowhere = PackedRecord(Extent(Path(name), 0, layout.slot_bytes), 0)
        layers[numbers[name]] = LayerEntry(layout, (nowhere,) * module.num_experts)
    return ExpertCatalog(layers)


def _num_sources(model: Any) -> dict[str, int]:
    """By parameters of experts: of how many matrices a checkpoint has them, where it has some of each expert."""
    return {
        entry.target_patterns[0].rpartition(".")[2]: len(entry.source_patterns)
        for entry in get_model_conversion_mapping(model)
        if isinstance(entry, WeightConverter) and all("experts.*" in pattern for pattern in entry.source_patterns)
    }


def _quantised(scheme: Scheme, parameter: str, shape: tuple[int, ...], num_sources: int) -> list[ParameterSpec]:
    out_features, in_features = shape
    names = [parameter] if num_sources == 1 else [f"{parameter}.{number}" for number in range(num_sources)]
    specs = scheme.specs(out_features // num_sources, in_features)
    return [ParameterSpec(name + suffix, *spec) for name in names for suffix, spec in specs.items()]
