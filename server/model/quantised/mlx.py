"""Checkpoints that MLX converted (``mlx_lm.convert``), of families whose other tensors it leaves as they are.

``X.weight`` is uint32 ``(out, in * bits / 32)`` with the codes of consecutive inputs from the lowest bits; ``X.scales``
and ``X.biases`` are ``(out, groups)``. A weight is ``code * scale + bias``. The experts of a layer are one tensor for
each projection, ``switch_mlp.gate_proj`` and so on, whose first dimension is the expert.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from expert_store import CheckpointError, TensorSource
from server.kernels.formats import group_int4, group_int8
from server.kernels.formats.group_int4 import repack_int4
from server.model.quantised.ints import BYTE_MIDDLE, NIBBLE, WIDTH, signed, unpack
from server.model.quantised.matrix import SlotTensor, Specs, StoredMatrix, StoredTensor, expect, require

FAMILIES = ("glm4_moe", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe")  # of others, MLX changes more than experts' names
SETTINGS = "quantization"  # field of configs
WEIGHT, SCALES, BIASES = ".weight", ".scales", ".biases"
STACK, EXPERT = ".switch_mlp.", re.compile(r"\.experts\.\d+\.")
BITS = (4, 8)
GROUPS = (32, 64, 128)  # inputs


class Layer(NamedTuple):
    """The settings of a linear layer."""

    bits: int
    group: int  # inputs

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Layer:
        """Read settings.

        Raises:
            ValueError: they are not supported.
        """
        found = cls(int(given["bits"]), int(given["group_size"]))
        if found.bits not in BITS or found.group not in GROUPS or given.get("mode", "affine") != "affine":
            raise ValueError(given)
        return found


def is_converted(model_type: object, settings: object) -> bool:
    """Return whether a checkpoint is one that MLX converted and that can be served, by its config.

    Args:
        settings: ``SETTINGS`` of the config.
    """
    if model_type not in FAMILIES or not isinstance(settings, Mapping):
        return False
    try:
        return bool(layers_of(settings))
    except (KeyError, TypeError, ValueError):
        return False


def layers_of(settings: Mapping[str, Any]) -> dict[str, Layer]:
    """Return the settings of layers by name; those of all others by the empty name.

    Raises:
        KeyError, TypeError, ValueError: they are not supported.
    """
    own = {name: Layer.of(given) for name, given in settings.items() if isinstance(given, Mapping)}
    return {"": Layer.of(settings), **own}


def split_stacks(
    index: Mapping[str, TensorSource | StoredTensor], num_experts: Collection[int]
) -> dict[str, TensorSource | StoredTensor]:
    """Return the tensors of a checkpoint, with those of each expert by themselves.

    Args:
        num_experts: of the layers of the model.

    Raises:
        CheckpointError: a tensor has those of another number of experts.
    """
    found: dict[str, TensorSource | StoredTensor] = {}
    for name, source in index.items():
        if STACK not in name or isinstance(source, StoredTensor):
            found[name] = source
            continue
        if not source.shape or source.shape[0] not in num_experts:
            wanted = " or ".join(map(str, sorted(num_experts)))
            raise CheckpointError(f"{name} has shape {list(source.shape)}; its first dimension should be {wanted}")
        for expert in range(source.shape[0]):
            part, own = source.leading_part(expert, source.shape[0]), name.replace(STACK, f".experts.{expert}.")
            found[own] = TensorSource(own, part.dtype, part.shape[1:], part.extent)
    return found


class Mlx:
    """The scheme of MLX.

    Args:
        layers: the result of ``layers_of``.
    """

    dimensions = 2

    def __init__(self, layers: Mapping[str, Layer]):
        self._layers = layers

    def name_of(self, codes: TensorSource) -> str | None:
        return codes.name if codes.dtype == torch.uint32 and codes.name.endswith(WEIGHT) else None

    def parts(self, codes: TensorSource, index: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
        module = codes.name.removesuffix(WEIGHT)
        return {part: require(index, codes, module + part) for part in (SCALES, BIASES)}

    def matrix(self, codes: TensorSource, parts: Mapping[str, TensorSource]) -> StoredMatrix:
        path = EXPERT.sub(STACK, codes.name.removesuffix(WEIGHT))
        bits, group = self._layers.get(path, self._layers[""])
        shape = (codes.shape[0], codes.shape[1] * WIDTH // bits)
        for part in parts.values():
            expect(part, (shape[0], -(-shape[1] // group)), codes)
        if shape[1] % group:
            raise CheckpointError(f"{codes.name} has {shape[1]} inputs, which are not groups of {group}")
        factors = (parts[SCALES], parts[BIASES])
        made = {
            "": ((codes,), _nibbles),
            group_int4.SCALE: (factors, _scales),
            group_int8.CODES: ((codes,), lambda read: signed(unpack(read[0], bits))),
            group_int8.STEPS: (factors[:1], None),
            group_int8.ZERO: (factors, lambda read: _zeros(read, parts[SCALES].name)),
        }
        specs = _specs(shape, bits, group, parts[SCALES].dtype)
        return StoredMatrix(shape, tuple(SlotTensor(suffix, *spec, *made[suffix]) for suffix, spec in specs.items()))

    def specs(self, out_features: int, in_features: int) -> Specs:
        return _specs((out_features, in_features), *self._layers[""], torch.float32)


def _specs(shape: tuple[int, int], bits: int, group: int, scale_dtype: torch.dtype) -> Specs:
    if bits == NIBBLE:  # float32 holds centres exactly, and takes no more than bfloat16 with a rest
        return repack_int4.specs(*shape, group, torch.float32, has_zero=True, has_order=False)
    groups = (shape[0], shape[1] // group)
    return {
        group_int8.CODES: (torch.int8, shape),
        group_int8.STEPS: (scale_dtype, groups),
        group_int8.ZERO: (torch.float32, groups),
    }


def _nibbles(read: Sequence[torch.Tensor]) -> torch.Tensor:
    return repack_int4.blocks_of_inputs(read[0].view(torch.int32).mT.contiguous())


def _scales(read: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return scales and centres, float32 ``(groups, out, 2)``."""
    scales, biases = (each.mT.float() for each in read)
    return torch.stack((scales, biases + group_int4.MIDDLE * scales), -1)


def _zeros(read: Sequence[torch.Tensor], name: str) -> torch.Tensor:
    """Return the codes that mean zero, float32 ``(out, groups)``; they need not be integers."""
    scales, biases = (each.float() for each in read)
    if not scales.all():
        raise CheckpointError(f"{name} has scales of zero")
    return -biases / scales - BYTE_MIDDLE
