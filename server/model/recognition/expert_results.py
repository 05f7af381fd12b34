"""Finds what a model does to its experts' results, by a pass in which experts return their input."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from server.model.blocks.capture import Capture, LayerCapture, echo
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.layer import NativeLayer
from server.model.blocks.layer_trial import LayerTrial
from server.model.blocks.mixer import relative_error
from server.model.blocks.tolerances import TOLERANCE
from server.model.recognition.positions import LayerPositions
from server.model.recognition.scales import NamedFactors


class ExpertResults:
    """Compares layers whose experts return their input.

    Args:
        trial: runs the layers.
        positions: of the layers.
        factors: that the model's config names.
    """

    def __init__(self, trial: LayerTrial, positions: LayerPositions, factors: NamedFactors):
        self._trial, self._positions, self._factors = trial, positions, factors

    def check(self, layers: Sequence[NativeLayer], captured: Capture) -> None:
        """Find the factor of each layer's experts, and compare the layer with its modules.

        Args:
            captured: a pass in which experts return their input.

        Raises:
            UnsupportedLayerError: something else is done to the experts' results.
        """
        named = [each.with_mixer(layer.mixer.module) for layer, each in zip(layers, captured.layers, strict=True)]
        for index, (layer, each) in enumerate(zip(layers, named, strict=True)):
            if layer.experts is None:
                continue
            self._trial.set_positions(self._positions.kinds[self._positions.kind_of(layer)])
            if self._defers(layers[index : index + 2], named[index : index + 2]):
                continue
            layer.mixture.experts_scale = self._experts_scale(layer, each)
            error = self._trial.echo_error(layer, each)
            if not error < TOLERANCE:
                raise UnsupportedLayerError(f"its layers change the results of experts, off by {error:.1e}")

    def _defers(self, layers: Sequence[NativeLayer], captured: Sequence[LayerCapture]) -> bool:
        """Return whether the next block of the same layer adds the results of a block's experts, and set that it does.

        Args:
            layers: the block and the one after it, if there is one.
            captured: their calls, with experts that return their input.

        Raises:
            UnsupportedLayerError: the next block adds something else.
        """
        if len(layers) == 1 or captured[0].layer is not captured[1].layer:
            return False
        (own, following), (given, after) = layers, captured
        if not self._trial.error(own, given) < TOLERANCE:
            return False
        self._trial.set_positions(self._positions.kinds[self._positions.kind_of(following)])
        own.mixture.experts_scale = scale = self._experts_scale(following, after, own, given)
        routing = given.routing
        assert routing is not None
        found = torch.from_numpy(self._trial.workspace.residual) + self._echoes(own, given) * scale
        error = relative_error(found - after.given, after.output - after.given)
        if not error < TOLERANCE:
            raise UnsupportedLayerError(f"its layers add the results of experts in another way, off by {error:.1e}")
        own.mixture.is_deferred = following.spec.adds_deferred = 1
        return True

    def _echoes(self, layer: NativeLayer, captured: LayerCapture) -> torch.Tensor:
        """Return the sum of a layer's experts as it is added, if they return their input."""
        routing, spec = captured.routing, layer.spec
        assert routing is not None
        num_rows = layer.mixture.router.matrix.outputs
        echoes = echo(routing.hidden_states, routing.top_k_index, routing.top_k_weights, num_rows)
        scaled: torch.Tensor = echoes.float() * (spec.residual_scale * spec.output_scale)
        return scaled

    def _experts_scale(
        self,
        layer: NativeLayer,
        captured: LayerCapture,
        owner: NativeLayer | None = None,
        owner_call: LayerCapture | None = None,
    ) -> float:
        """Return the factor of the sum of experts that return their input.

        It is 1 if a norm, a convolution, a projection, a gate of their sum or several rows a token follow.

        Args:
            layer: adds the sum.
            captured: a call of it.
            owner: the layer of the experts, and a call of it, if that is another one.
        """
        owner, owner_call = owner or layer, owner_call or captured
        has_norm = owner.spec.output_norm.kind or owner.mixture.output_norm.kind
        is_changed = owner.spec.inner_convolution or owner.mixture.output_projection.outputs
        if has_norm or is_changed or owner.spec.inner_residual_gate or captured.num_streams:
            return 1.0
        self._trial.run(layer, captured)
        wanted, given = (
            captured.output - torch.from_numpy(self._trial.workspace.residual),
            self._echoes(owner, owner_call),
        )
        square = float(given.double().square().sum().clamp_min(1e-30))
        return self._factors.exact(float((given.double() * wanted.double()).sum()) / square)
