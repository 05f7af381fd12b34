"""Reads the settings of a config by layer.

A config may give some layers other settings than the rest (``per_layer_config``): heads, head sizes, windows, experts.
transformers raises for such a setting of the complete config, so settings of layers are read here alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig


def layer_configs(config: PreTrainedConfig) -> Sequence[PreTrainedConfig]:
    """Return the config of each layer; the config itself, once, if all layers have the same settings."""
    return list(config.per_layer_config) if config.is_heterogeneous else [config]


def layer_values(config: PreTrainedConfig, *names: str) -> list[Any]:
    """Return the values that settings have in any layer, without None.

    Args:
        names: settings that a config may lack, or hold as a list with one value per layer.
    """
    found = [getattr(layer, name, None) for layer in layer_configs(config) for name in names]
    each = [value for entry in found for value in (entry if isinstance(entry, list | tuple) else [entry])]
    return [value for value in each if value is not None]
