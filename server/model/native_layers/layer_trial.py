"""LayerTrial: runs single layers on the input of their modules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from server.kernels.native.library import Kernels, impossible
from server.kernels.native.structures.layers import LayerSpec
from server.kernels.native.structures.matrices import Format, Matrix
from server.model.attention.kv_cache import KVShape
from server.model.native_layers.capture import LayerCapture
from server.model.native_layers.errors import UnsupportedLayerError
from server.model.native_layers.workspace import BLOCK, Positions, Workspace
from server.model.step import SequenceChunk


class LayerTrial:
    """Runs single layers on the input of their modules, with experts that add nothing and a cache of their own.

    Args:
        workspace: keeps the results of the last run.
        tokens: the tokens of the input.
        slot_bytes: bytes of an expert's slot in each layer.
    """

    def __init__(self, kernels: Kernels, workspace: Workspace, tokens: Sequence[int], slot_bytes: Sequence[int]):
        self._kernels, self._tokens, self._slot_bytes = kernels, tokens, slot_bytes
        self.workspace = workspace

    def set_positions(self, positions: Positions) -> None:
        """Use rotary positions in the next runs."""
        positions.update(self.workspace.call, len(self._tokens) - 1)

    def run(self, spec: LayerSpec, captured: LayerCapture) -> torch.Tensor:
        """Run a layer, and return its keys after the rotation, float32 ``(kv_heads, tokens, key_dim)``."""
        count, workspace = len(self._tokens), self.workspace
        num_blocks = -(-count // BLOCK)
        workspace.begin([SequenceChunk(self._tokens, 0, [range(num_blocks)])], 1)
        workspace.hidden[:] = captured.given.numpy()
        shape = KVShape(spec.kv_heads, spec.key_dim, spec.value_dim, torch.float32)
        trial = LayerSpec.from_buffer_copy(spec)
        keys, values = (np.zeros((spec.kv_heads, num_blocks, shape.dim, BLOCK), dtype=np.float32) for _ in range(2))
        trial.key_cache, trial.value_cache = keys.ctypes.data, values.ctypes.data
        trial.cache_slots, trial.cache_dim, trial.cache_format, trial.group = (
            num_blocks * BLOCK,
            shape.dim,
            Format.FLOAT32,
            0,
        )
        trial.router.top_k = max(1, trial.router.top_k)
        self.check(trial)
        self._kernels.attention(trial, workspace.call, 0)
        nothing = np.zeros((count * trial.router.top_k, workspace.call.hidden_size), dtype=np.float32)
        self._kernels.finish_layer(trial, workspace.call, 0, nothing.ctypes.data)
        by_token = torch.from_numpy(keys).transpose(2, 3).flatten(1, 2)  # (kv_heads, places, dim)
        return by_token[:, :count, : spec.key_dim]

    def queries(self, spec: LayerSpec, captured: LayerCapture) -> torch.Tensor:
        """Return a layer's queries after the rotation, float32 ``(heads, tokens, key_dim)``.

        They are the keys of a layer in whose cache they take the places of keys.
        """
        trial = LayerSpec.from_buffer_copy(spec)
        size = spec.heads * spec.key_dim
        nothing = np.zeros((spec.output.outputs, size), dtype=np.float32)
        trial.key, trial.key_bias, trial.key_norm = spec.query, spec.query_bias, spec.query_norm
        trial.value, trial.value_bias = spec.query, spec.query_bias
        trial.kv_heads, trial.value_dim = spec.heads, spec.key_dim
        trial.output = Matrix(format=Format.FLOAT32, outputs=spec.output.outputs, inputs=size, data=nothing.ctypes.data)
        return self.run(trial, captured)

    def error(self, spec: LayerSpec, captured: LayerCapture) -> float:
        """Run a layer, and return the error of its output relative to what its modules add."""
        self.run(spec, captured)
        difference = torch.from_numpy(self.workspace.hidden) - captured.output
        return float(difference.norm() / (captured.output - captured.given).norm().clamp_min(1e-20))

    def check(self, spec: LayerSpec) -> None:
        """Raise ``UnsupportedLayerError`` if the counts of a spec do not fit each other."""
        reason = impossible(
            "greenroom_check_layer", spec, self.workspace.call.hidden_size, self._slot_bytes[spec.index]
        )
        if reason is not None:
            raise UnsupportedLayerError(f"it has {reason}")


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the norm of a difference, relative to that of the wanted values."""
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-20))
