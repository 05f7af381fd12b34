"""The expert catalog of a model of which only the config is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from expert_store import ExpertCatalog, ExpertLayout, Extent, FileSource, LayerEntry, PackedRecord, ParameterSpec
from server.kernels.expert import transposed_names
from server.model.checkpoint.tensor_map import experts_modules, layer_numbers
from server.model.dtype import stored_dtype
from server.model.quantised.matrix import Scheme
from server.model.quantised.scheme import find_scheme

MATRIX_DIMENSIONS = 2


def catalog_from_config(model: Any) -> ExpertCatalog:
    """Build an expert catalog for byte counts, without any files.

    All experts get the dtype or the quantisation that the config names, since the config does not list exceptions.

    Args:
        model: the model on the meta device, with its experts' parameters.
    """
    dtype = stored_dtype(model.config)
    scheme = find_scheme(model.config, type(model).__name__)
    modules = experts_modules(model)
    numbers, num_sources = layer_numbers(list(modules)), _num_sources(model)
    layers = {}
    for name, module in modules.items():
        specs: list[ParameterSpec] = []
        for parameter, value in module.named_parameters(recurse=False):
            shape = tuple(value.shape[1:])
            if scheme is None or len(shape) != MATRIX_DIMENSIONS:
                specs.append(ParameterSpec(parameter, dtype, shape))
            else:
                out_in = shape[::-1] if parameter in transposed_names(module) else shape
                specs.extend(_quantised(scheme, parameter, out_in, num_sources.get(parameter, 1)))
        layout = ExpertLayout(tuple(specs))
        nowhere = PackedRecord(Extent(FileSource(Path(name)), 0, layout.slot_bytes), 0)
        layers[numbers[name]] = LayerEntry(layout, (nowhere,) * module.num_experts)
    return ExpertCatalog(layers)


def _num_sources(model: Any) -> dict[str, int]:
    """The number of matrices per expert that a checkpoint stores for a parameter, if it stores experts separately."""
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
