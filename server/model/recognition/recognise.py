"""Recognises models whose decoder layers the native kernels can run, and compares each layer with its modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from server.kernels.native.library import Kernels
from server.model.architecture import decoder_layers, text_body
from server.model.blocks.capture import Capture, LayerCapture, capture
from server.model.blocks.declaration import MixerDeclaration
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.layer import NativeLayer
from server.model.blocks.layer_trial import LayerTrial
from server.model.blocks.mixer import MixerParts
from server.model.blocks.tolerances import TOLERANCE
from server.model.blocks.workspace import Workspace
from server.model.declarations.declaration import Declaration
from server.model.experts.router import RouterSample, find_router
from server.model.native_layers.embedding_rows import norm_of_rows
from server.model.native_layers.own_router import find_own_router
from server.model.native_layers.parts import factor_of
from server.model.native_layers.router_mlp import RouterMlpParts, weights_of
from server.model.native_layers.spec import NO_ROUTER, LayerRouter
from server.model.quantised.embedding import embedded_rows
from server.model.recognition.declare import FoundLayer, Recognition, declare, rounding_of
from server.model.recognition.expert_results import ExpertResults
from server.model.recognition.far_trial import check_far
from server.model.recognition.find_parts import FoundParts
from server.model.recognition.hash_router import find_hash_router
from server.model.recognition.head_trial import cap_logits, find_head
from server.model.recognition.image_experts import ImageExperts
from server.model.recognition.layer_builder import LayerBuilder
from server.model.recognition.positions import LayerPositions
from server.model.recognition.residuals import find_residuals
from server.model.recognition.router_kinds import (
    choices_agree,
    find_router_kind,
    logits_of,
    run_trial,
    steady_rows,
)
from server.model.recognition.scales import ROUNDING
from server.model.recognition.text_inputs import check_inputs, has_image_experts
from server.model.recognition.twin import DTYPE, Twin

ROUNDED = torch.bfloat16  # a dtype that rounds most factors


def recognise(twin: Twin, kernels: Kernels, longest: int) -> Declaration:
    """Find what a model is, so far as the native kernels can run it.

    Args:
        twin: of the model.
        kernels: that run it.
        longest: tokens of the longest sequence.

    Raises:
        UnsupportedLayerError: they can't.
    """
    return declare(_Recogniser(twin, kernels, longest).find())


class _Recogniser:
    def __init__(self, twin: Twin, kernels: Kernels, longest: int):
        self._twin, self._kernels, self._longest = twin, kernels, longest
        self._is_usual = True  # the layers so far add results to the hidden states
        self._others: dict[int, list[MixerParts]] = {}  # the kinds that a layer's mixer may be, but for those tried
        self._mixers: dict[int, MixerDeclaration] = {}
        self._routers: list[LayerRouter] = []
        model = self._model = twin.model
        check_inputs(model)
        self._builder = LayerBuilder(model, twin.experts, twin.recurrent)
        self._body, self._factors = text_body(model), twin.factors
        if decoder_layers(self._body) is None:
            raise UnsupportedLayerError("its layers have another name")

    def find(self) -> Recognition:
        twin, keeps_states = self._twin, bool(self._twin.recurrent)
        captured = capture(self._model, twin.forward, twin.tokens, keeps_states=keeps_states)
        if [*dict.fromkeys(each.layer for each in captured.layers)] != [*(decoder_layers(self._body) or ())]:
            raise UnsupportedLayerError("not all of its layers are called")
        if any(not torch.equal(one.output, other.given) for one, other in pairwise(captured.layers)):
            raise UnsupportedLayerError("its hidden states change between its layers")
        parts = [self._builder.parts_of(each) for each in captured.layers]
        named = [each.with_mixer(found.mixer_module) for each, found in zip(captured.layers, parts, strict=True)]
        captured = replace(captured, layers=named)
        layers = [
            self._build(index, found, each)
            for index, (found, each) in enumerate(zip(parts, captured.layers, strict=True))
        ]
        _check_choices(layers)
        images = self._build_images(layers, parts, captured)
        every = [*layers, *(layer for _, layer in images.values())]
        routed = [layer for layer in every if layer.experts is not None]
        routing = [each.routing for each in captured.layers if each.routing is not None]
        if not routed or len(routed) != len(twin.experts):
            raise UnsupportedLayerError("not all of its experts are in its layers")
        if has_image_experts(self._model) and 2 * len(images) != len(routed):
            raise UnsupportedLayerError("not all of its experts have others for images beside them")
        top_k = max(each.top_k_index.shape[1] for each in routing)
        hidden_size, num_streams = captured.layers[0].hidden_size, captured.layers[0].num_streams
        num_experts = max(layer.mixture.num_experts for layer in routed)
        slot_bytes = [0 if each.experts is None else each.experts.layout.slot_bytes for each in every]
        self._workspace = Workspace(hidden_size, 1, top_k, num_experts, is_exact=True, num_streams=num_streams)
        self._trial = LayerTrial(self._kernels, self._workspace, twin.tokens, slot_bytes)
        self._positions = LayerPositions(self._trial, layers, captured, self._longest, TOLERANCE)
        for layer, found, each in zip(layers, parts, captured.layers, strict=True):
            self._fit(layer, found, each)
        for experts, layer in images.values():
            router = self._routers[layer.spec.index]
            self._find_router_kind(layer, router, experts.parts, experts.captured)
            self._check_router(layer, router, experts.parts, experts.captured)
            self._trial.check(layer.spec)
            experts.check(layer)
        echoed = capture(self._model, twin.forward, twin.tokens, keeps_states=keeps_states, echoes=True)
        ExpertResults(self._trial, self._positions, self._factors).check(layers, echoed)
        head = find_head(self._model, captured, self._kernels, self._factors)
        check_far(
            self._model,
            twin.forward,
            twin.tokens,
            near=captured,
            longest=self._longest,
            logits_of=lambda logits: cap_logits(logits, head.call),
            layers=layers,
            keeps_states=keeps_states,
        )
        blocks = [
            FoundLayer(layer, found, self._mixers[layer.spec.index], self._routers[layer.spec.index])
            for layer, found in zip(layers, parts, strict=True)
        ]
        for_images = {
            index: replace(blocks[index], layer=layer, router=self._routers[layer.spec.index])
            for index, (_, layer) in images.items()
        }
        measured = self._embedding_scale(captured)
        is_rounded, scale = self._is_scale_rounded(captured, measured), self._scale_of_model(measured)
        return Recognition(twin, captured, blocks, for_images, self._positions, scale, is_rounded, head)

    def _build(self, index: int, parts: FoundParts, captured: LayerCapture) -> NativeLayer:
        router = self._find_router(parts, captured)
        self._routers.append(router)
        found = self._builder.build(index, parts, captured, router)
        if parts.residual_rows is not None:
            residuals = find_residuals(
                parts.residual_rows, captured, self._factors, found.spec.residual_scale, is_usual=self._is_usual
            )
            self._is_usual &= not residuals.mixer
            found.spec.mixer_residual, found.spec.inner_residual = residuals.mixer, residuals.inner
            found.spec.residual_scale = residuals.scale
        self._others[index] = list(parts.mixers)
        self._build_mixer(found, captured)
        return found

    def _find_router(self, parts: FoundParts, captured: LayerCapture) -> LayerRouter:
        """Find the router of a layer's experts, if it has some."""
        experts, routing = self._builder.experts_of(captured), captured.routing
        if experts is None:
            return NO_ROUTER
        if routing is None:
            raise UnsupportedLayerError("a layer does not call its experts")
        names, num_experts = self._builder.names, len(self._builder.experts[experts].keys)
        if parts.is_router_apart:
            own = find_own_router(parts.router, num_experts, routing.top_k_index.shape[1])
            return LayerRouter(own.weights, own)
        mlp = RouterMlpParts.find(parts.router)
        if mlp is not None:
            return LayerRouter(weights_of(mlp, names[parts.router], num_experts), mlp=mlp)
        tokens = self._twin.tokens
        hashed = find_hash_router(parts.router, names[parts.router], num_experts, tokens, routing)
        if hashed is not None:
            return LayerRouter(hashed.weights, table=hashed.table)
        sample = RouterSample(_rows_of_router(parts, captured), routing.top_k_index)
        router = find_router(self._model, names[experts], sample, getattr(experts, "num_identities", 0))
        return LayerRouter(router, factor=factor_of(parts.router))

    def _build_images(
        self, layers: Sequence[NativeLayer], parts: Sequence[FoundParts], captured: Capture
    ) -> dict[int, tuple[ImageExperts, NativeLayer]]:
        """Build the layers of experts for images, by the layers that have such."""
        built: dict[int, tuple[ImageExperts, NativeLayer]] = {}
        for index, (layer, found, each) in enumerate(zip(layers, parts, captured.layers, strict=True)):
            if found.images is not None:
                experts = ImageExperts.of_trial(layer, found, found.images, each)
                routing, name = experts.routing, self._builder.names[found.images.experts]
                router = find_router(self._model, name, RouterSample(routing.hidden_states, routing.top_k_index))
                self._routers.append(LayerRouter(router))
                number = len(layers) + len(built)
                built[index] = experts, experts.build(number, self._twin.experts, router)
        return built

    def _build_mixer(self, layer: NativeLayer, captured: LayerCapture) -> None:
        """Build a layer's mixer as the next kind that it may be."""
        index = layer.spec.index
        number, declared = self._builder.build_mixer(layer, captured, self._others[index])
        others = self._others[index][number:]
        self._mixers[index], self._others[index] = declared, others[1:]

    def _fit(self, layer: NativeLayer, parts: FoundParts, captured: LayerCapture) -> None:
        """Fit the mixer and find the kind of router, and compare what the layer adds with the modules' output.

        The router is found first: it may weight experts that are among what the layer adds.
        """
        router = self._routers[layer.spec.index]
        if layer.experts is not None:
            self._find_router_kind(layer, router, parts, captured)
        self._fit_mixer(layer, captured)
        if layer.experts is not None:
            self._check_router(layer, router, parts, captured)
        self._trial.check(layer.spec)

    def _fit_mixer(self, layer: NativeLayer, captured: LayerCapture) -> None:
        """Fit the mixer that was built, or else the next kind that it may be."""
        while True:
            try:
                return self._check_mixer(layer, captured)
            except UnsupportedLayerError:
                if not self._others[layer.spec.index]:
                    raise
                self._build_mixer(layer, captured)

    def _check_mixer(self, layer: NativeLayer, captured: LayerCapture) -> None:
        positions = self._positions.kinds[self._positions.kind_of(layer)]
        self._trial.set_positions(positions)
        layer.mixer.fit(self._trial.of_mixer(layer, captured, positions, TOLERANCE))
        error = self._trial.error(layer, captured)
        if not error < TOLERANCE:
            raise UnsupportedLayerError(f"its layers compute something else, off by {error:.1e} of what they add")

    def _find_router_kind(
        self, layer: NativeLayer, owner: LayerRouter, parts: FoundParts, captured: LayerCapture
    ) -> None:
        """Find the kind of router by a trial of the modules alone."""
        routing, router, mixture = captured.routing, layer.router, layer.mixture
        assert routing is not None
        assert router is not None
        mixture.router.top_k = routing.top_k_index.shape[1]
        correction = None if router.correction is None else router.correction.double()
        own_router, table = owner.own, owner.table
        trial = run_trial(parts.block, router, DTYPE, own_router, table=table, mlp=owner.mlp, owner=parts.router)
        self._routers[layer.spec.index] = replace(owner, chooses=trial.chooses)
        mixture.router = find_router_kind(mixture.router, parts.router, correction, trial, DTYPE)
        mixture.router.scale = owner.factor * self._factors.nearest(mixture.router.scale / owner.factor)

    def _check_router(self, layer: NativeLayer, owner: LayerRouter, parts: FoundParts, captured: LayerCapture) -> None:
        """Compare the kernels' choices with the modules'."""
        routing, router, mixture = captured.routing, layer.router, layer.mixture
        assert routing is not None
        assert router is not None
        correction = None if router.correction is None else router.correction.double()
        own_router, table = owner.own, owner.table
        self._trial.run(layer, captured)
        rows = _rows_of_router(parts, captured)
        if own_router is not None:
            rows = own_router.rows(next(each.given for each in captured.calls if each.module is parts.router))
        if owner.mlp is not None:
            rows = owner.mlp.rows(rows, owner.mlp.carried_in(captured))
        logits = logits_of(router, rows)
        given = None if table is None else routing.top_k_index
        _, _, is_steady = steady_rows(mixture.router, correction, logits, TOLERANCE, given)
        chosen, weighted = self._trial.choices(layer)
        wanted, order = routing.top_k_index.sort(1)
        found, own_order = chosen.sort(1)
        is_same = (wanted == found).all(1) & is_steady  # (tokens,)
        weights = routing.top_k_weights.float().gather(1, order)[is_same]
        own = weighted.gather(1, own_order)[is_same]
        are_near = (weights - own).abs() <= TOLERANCE * routing.top_k_weights.abs().max()
        if not choices_agree(int(is_same.sum()), int(is_steady.sum()), DTYPE) or not bool(are_near.all()):
            raise UnsupportedLayerError("its router chooses other experts than the kernels do")

    def _embedding_scale(self, captured: Capture) -> float:
        """Return the factor of embeddings before the first layer."""
        embeddings: Any = self._model.get_input_embeddings()
        embedded = embedded_rows(embeddings, torch.tensor(self._twin.tokens))
        norm = norm_of_rows(embeddings, embedded.shape[1], self._body)
        if norm is not None and norm.module is self._body:
            embedded = embedded * norm.weight + (0.0 if norm.bias is None else norm.bias)
        elif norm is not None:
            embedded = norm.module(embedded)
        given = captured.layers[0].given
        if captured.layers[0].num_streams:
            embedded = embedded.unsqueeze(1).expand_as(given)
        scale = float((embedded * given).sum() / embedded.square().sum())
        if not (embedded * scale - given).norm() <= TOLERANCE * given.norm():
            raise UnsupportedLayerError("its embeddings are changed before the first layer")
        root = self._model.config.get_text_config().hidden_size ** 0.5
        return root if abs(scale - root) <= ROUNDING * scale else self._factors.nearest(scale)

    def _scale_of_model(self, scale: float) -> float:
        """Return a factor of the twin's embeddings as that of the other model's."""
        root: float = self._model.config.get_text_config().hidden_size ** 0.5
        return self._twin.hidden_size**0.5 if scale == root else scale

    def _is_scale_rounded(self, captured: Capture, scale: float) -> bool:
        """Return whether the model multiplies embeddings by a factor that was rounded to its dtype.

        The twin has another dtype then.
        """
        if float(torch.tensor(scale, dtype=ROUNDED)) == scale:
            return False
        twin = self._twin
        rounded = capture(twin.model.to(ROUNDED), twin.forward, twin.tokens, keeps_states=bool(twin.recurrent))
        return rounding_of(scale, captured.layers[0].given, rounded.layers[0].given, ROUNDED)


def _rows_of_router(parts: FoundParts, captured: LayerCapture) -> torch.Tensor:
    """Return the rows that a layer's router takes, if it has no norm of its own."""
    assert captured.routing is not None
    if parts.projections is None:
        return captured.routing.hidden_states
    return next(each.given for each in captured.calls if each.module is parts.block)


def _check_choices(layers: Sequence[NativeLayer]) -> None:
    """Raise ``UnsupportedLayerError`` if a layer takes chosen keys, and no layer before it chooses as many."""
    latest = 0
    for layer in layers:
        chosen = layer.mixer.chosen_keys
        if chosen is not None and chosen.are_own:
            latest = chosen.top_k
        elif chosen is not None and chosen.top_k != latest:
            raise UnsupportedLayerError("its layers share chosen keys, and no indexer chooses them")
