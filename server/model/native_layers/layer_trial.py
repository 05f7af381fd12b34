"""LayerTrial: runs single layers on the input of their modules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import addressof

import numpy as np
import torch

from server.kernels.native.library import Kernels, impossible
from server.kernels.native.structures.layers import GroupedAttention, LayerSpec, Mixture
from server.kernels.native.structures.matrices import Format, Matrix
from server.model.attention.kv_cache import KVShape
from server.model.native_layers.capture import LayerCapture
from server.model.native_layers.errors import UnsupportedLayerError
from server.model.native_layers.external_mixers import rows_of
from server.model.native_layers.router_kinds import TOLERANCES
from server.model.native_layers.spec import NativeLayer
from server.model.native_layers.workspace import BLOCK, Positions, Workspace
from server.model.recurrent.recurrent_modules import ModuleCall
from server.model.step import SequenceChunk

ADDITIONS = 0.3  # error of a layer's additions to the residual stream, by the spacing of its numbers at 1
MOST_ROUNDED = 0.1  # relative error up to which rounding of the residual stream may be its reason


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

    def run(
        self, layer: NativeLayer, captured: LayerCapture, attention: GroupedAttention | None = None
    ) -> torch.Tensor:
        """Run a layer, and return its keys after the rotation, float32 ``(kv_heads, tokens, key_dim)``.

        A mixer that is a module adds what the captured one did, and has no keys.

        Args:
            layer: without experts, which add nothing.
            captured: the call of its modules.
            attention: runs in place of the layer's own.

        Raises:
            UnsupportedLayerError: a module got something else than normed rows.
        """
        count, workspace = len(self._tokens), self.workspace
        num_blocks = -(-count // BLOCK)
        workspace.begin([SequenceChunk(self._tokens, 0, [range(num_blocks)])], 1)
        workspace.hidden[:] = captured.given.numpy()
        if captured.mixer is not None:
            self._mix(layer.spec, captured.mixer)
            self._finish(layer, LayerSpec.from_buffer_copy(layer.spec))
            return torch.empty(0)
        own = attention or layer.attention
        shape = KVShape(own.kv_heads, own.key_dim, own.value_dim, torch.float32)
        spec, trial = LayerSpec.from_buffer_copy(layer.spec), GroupedAttention.from_buffer_copy(own)
        spec.mixer = addressof(trial)
        keys, values = (np.zeros((own.kv_heads, num_blocks, shape.dim, BLOCK), dtype=np.float32) for _ in range(2))
        trial.key_cache, trial.value_cache = keys.ctypes.data, values.ctypes.data
        trial.cache_slots, trial.cache_dim, trial.cache_format, trial.group = (
            num_blocks * BLOCK,
            shape.dim,
            Format.FLOAT32,
            0,
        )
        self._finish(layer, spec)
        by_token = torch.from_numpy(keys).transpose(2, 3).flatten(1, 2)  # (kv_heads, places, dim)
        return by_token[:, :count, : own.key_dim]

    def _mix(self, spec: LayerSpec, call: ModuleCall) -> None:
        workspace = self.workspace
        self._kernels.norm_input(spec, workspace.call)
        normed = torch.from_numpy(workspace.normed)
        given = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, torch.Tensor)]
        tolerance = TOLERANCES[given[0].dtype] if given else 0.0
        if not any(value.shape[1:] == normed.shape and relative_error(value[0], normed) < tolerance for value in given):
            raise UnsupportedLayerError(f"its {type(call.module).__name__} gets something else than normed rows")
        torch.from_numpy(workspace.hidden).add_(rows_of(call.output), alpha=spec.residual_scale)

    def _finish(self, layer: NativeLayer, spec: LayerSpec) -> None:
        """Run a layer's attention, if it has some, its router, and its other parts but the experts."""
        workspace, top_k = self.workspace, 0
        if layer.experts is not None:  # the number of choices may not be known yet
            mixture = Mixture.from_buffer_copy(layer.mixture)
            top_k = mixture.router.top_k = max(1, mixture.router.top_k)
            spec.feed_forward = addressof(mixture)
        self.check(spec)
        self._kernels.begin_layer(spec, workspace.call, 0)
        nothing = np.zeros((len(self._tokens) * top_k, workspace.call.hidden_size), dtype=np.float32)
        self._kernels.finish_layer(spec, workspace.call, 0, nothing.ctypes.data)

    def queries(self, layer: NativeLayer, captured: LayerCapture) -> torch.Tensor:
        """Return a layer's queries after the rotation, float32 ``(heads, tokens, key_dim)``.

        They are the keys of a layer in whose cache they take the places of keys.
        """
        own, trial = layer.attention, GroupedAttention.from_buffer_copy(layer.attention)
        if own.has_output_gate:  # gates follow each head's queries, as if they were those of other heads
            trial.heads, trial.has_output_gate = 2 * own.heads, 0
        size = trial.heads * own.key_dim
        nothing = np.zeros((own.output.outputs, size), dtype=np.float32)
        trial.key, trial.key_bias, trial.key_norm = own.query, own.query_bias, own.query_norm
        trial.value, trial.value_bias = own.query, own.query_bias
        trial.kv_heads, trial.value_dim = trial.heads, own.key_dim
        trial.output = Matrix(format=Format.FLOAT32, outputs=own.output.outputs, inputs=size, data=nothing.ctypes.data)
        queries = self.run(layer, captured, trial)
        return queries[::2] if own.has_output_gate else queries

    def error(self, layer: NativeLayer, captured: LayerCapture, dtype: torch.dtype) -> float:
        """Run a layer, and return the error of its output relative to what its modules add.

        Modules round the residual stream after each addition, which counts where they add little to it. So that part of
        a small error is left out.

        Args:
            layer: without experts, which add nothing.
            captured: the call of its modules.
            dtype: of the modules.
        """
        self.run(layer, captured)
        added = float((captured.output - captured.given).norm().clamp_min(1e-20))
        found = float((torch.from_numpy(self.workspace.hidden) - captured.output).norm()) / added
        rounding = ADDITIONS * torch.finfo(dtype).eps * float(captured.output.norm()) / added
        return math.sqrt(max(0.0, found**2 - rounding**2)) if found < MOST_ROUNDED else found

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
