"""LayerTrial: runs single layers on the input of their modules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import addressof
from functools import partial

import numpy as np
import torch

from server.kernels.native.library import Kernels, impossible
from server.kernels.native.structures.layers import LayerSpec, Mixture
from server.model.blocks.capture import LayerCapture
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.layer import NativeLayer
from server.model.blocks.mixer import Mixer, MixerStep, MixerTrial, relative_error
from server.model.blocks.query_scales import QueryScales
from server.model.blocks.tolerances import TOLERANCE
from server.model.blocks.workspace import BLOCK, Positions, Workspace
from server.model.program import Target
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

    def run(
        self, layer: NativeLayer, captured: LayerCapture, mixer: Mixer | None = None, *, echoes: bool = False
    ) -> None:
        """Run a layer, whose output is in the workspace then.

        Args:
            layer: without experts, which add nothing.
            captured: the call of its modules.
            mixer: prepared by ``Mixer.for_trial``; by default the layer's own, which is prepared here.
            echoes: whether experts return their input instead of zeros, as in the capture.

        Raises:
            UnsupportedLayerError: a module got something else than normed rows, or counts don't fit each other.
        """
        count, workspace, top_k = len(self._tokens), self.workspace, 0
        if mixer is None:
            mixer = layer.mixer.for_trial(captured, count)
        workspace.begin([SequenceChunk(self._tokens, 0, [range(-(-count // BLOCK))])], 1)
        workspace.residual[:] = captured.given.numpy()
        spec = LayerSpec.from_buffer_copy(layer.spec)
        spec.mixer, spec.mixer_kind, spec.adds_deferred = mixer.address, mixer.kind, 0
        ngrams = None if layer.ngrams is None else layer.ngrams.for_trial()
        spec.ngrams = None if ngrams is None else ngrams.address
        if layer.experts is not None:  # the number of choices may not be known yet
            mixture = Mixture.from_buffer_copy(layer.mixture)
            top_k = mixture.router.top_k = max(1, mixture.router.top_k)
            mixture.num_experts, mixture.num_identities = mixture.num_experts + mixture.num_identities, 0
            if echoes and mixture.input_projection.outputs:  # the kernels have what experts take
                mixture.num_experts, mixture.num_identities = 0, mixture.num_experts
            spec.feed_forward = addressof(mixture)
        self.check(spec)
        carried = None if layer.router_mlp is None else layer.router_mlp.carried_in(captured)
        workspace.call.router_rows = None if carried is None else carried.data_ptr()
        self._query_scales = QueryScales([mixer], count)  # kept, as the kernels read its table
        self._query_scales.update(workspace.call, count - 1)
        mix_outside(self._kernels, mixer, spec, workspace, None)
        self._kernels.begin_layer(spec, workspace.call, 0)
        is_projected = bool(top_k and layer.mixture.input_projection.outputs)
        width = layer.mixture.input_projection.outputs if is_projected else workspace.call.hidden_size
        outputs = np.zeros((count * top_k, width), dtype=np.float32)
        if echoes and top_k and not is_projected:
            outputs[:] = workspace.normed.repeat(top_k, axis=0)
            if layer.mixture.scales_input:
                outputs *= workspace.weights(0, top_k).reshape(-1, 1)
        self._kernels.finish_layer(spec, workspace.call, 0, outputs.ctypes.data)

    def of_mixer(
        self, layer: NativeLayer, captured: LayerCapture, positions: Positions, tolerance: float
    ) -> MixerTrial:
        """Return a trial of a layer's mixer.

        Args:
            layer: without experts, which add nothing.
            captured: the call of its modules.
            positions: those of the calls.
            tolerance: relative error.
        """
        run = partial(self.run, layer, captured)

        def error(mixer: Mixer) -> float:
            run(mixer)
            added = captured.output - captured.given
            return relative_error(torch.from_numpy(self.workspace.residual) - captured.given, added)

        return MixerTrial(captured, run, positions, error, len(self._tokens), tolerance)

    def error(self, layer: NativeLayer, captured: LayerCapture) -> float:
        """Run a layer, and return the error of its output relative to what its modules add.

        Args:
            layer: without experts, which add nothing.
            captured: the call of its modules.
        """
        self.run(layer, captured)
        return self._error(captured, torch.ones(len(captured.output), dtype=torch.bool))

    def echo_error(self, layer: NativeLayer, captured: LayerCapture) -> float:
        """Return the same of a layer whose experts return their input, for tokens whose routing is the same.

        Weights of the sparse mixer jump where a score is on the border of what counts as near.
        """
        self.run(layer, captured, echoes=True)
        routing, (chosen, weights) = captured.routing, self.choices(layer)
        assert routing is not None
        chosen, order = chosen.sort(1)
        wanted, wanted_order = routing.top_k_index.sort(1)
        weights = weights.gather(1, order)
        wanted_weights = routing.top_k_weights.float().gather(1, wanted_order)
        is_near = (weights - wanted_weights).abs() <= TOLERANCE * wanted_weights.abs().max()
        is_same = (chosen == wanted).all(1) & is_near.all(1)
        return self._error(captured, is_same) if is_same.any() else math.inf

    def choices(self, layer: NativeLayer) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the experts that the last run chose and their weights, as modules give them, ``(tokens, k)``.

        Those that stand for no expert are the first expert with no weight.
        """
        router = layer.mixture.router
        chosen = torch.from_numpy(self.workspace.chosen(0, router.top_k).astype(np.int64))
        weights = torch.from_numpy(self.workspace.weights(0, router.top_k))
        is_none = chosen >= router.matrix.outputs - router.num_skips
        return chosen.masked_fill(is_none & bool(router.num_skips), 0), weights

    def _error(self, captured: LayerCapture, rows: torch.Tensor) -> float:
        output, hidden = captured.output[rows], torch.from_numpy(self.workspace.residual)[rows]
        return float((hidden - output).norm() / (output - captured.given[rows]).norm().clamp_min(1e-20))

    def check(self, spec: LayerSpec) -> None:
        """Raise ``UnsupportedLayerError`` if the counts of a spec do not fit each other."""
        reason = impossible(
            "greenroom_check_layer", spec, self.workspace.call.hidden_size, self._slot_bytes[spec.index]
        )
        if reason is not None:
            raise UnsupportedLayerError(f"it has {reason}")


def mix_outside(kernels: Kernels, mixer: Mixer, spec: LayerSpec, workspace: Workspace, step: MixerStep | None) -> None:
    """Add the results of a mixer that runs outside of the kernels to the hidden states; nothing for other mixers."""
    if mixer.target is Target.NATIVE:
        return
    kernels.norm_input(spec, workspace.call)
    added = mixer.mix_outside(torch.from_numpy(workspace.normed), step)
    assert added is not None
    torch.from_numpy(workspace.hidden).add_(added, alpha=spec.residual_scale)
