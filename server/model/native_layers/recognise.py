"""Recognises models whose decoder layers the native kernels can run, and compares each layer with its modules."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from server.kernels.expert import ExpertsModule
from server.kernels.native.library import Kernels
from server.kernels.native.slot_format import PLAIN
from server.kernels.native.structures.adapters import LoraPlace
from server.model.architecture import decoder_layers, head_of, text_body
from server.model.blocks.adapter_places import END, NativeTarget
from server.model.blocks.capture import Capture, LayerCapture, Routing, capture
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.layer import NativeLayer
from server.model.blocks.layer_trial import LayerTrial
from server.model.blocks.mixer import LayerPlace, MixerParts, RotaryMixer
from server.model.blocks.query_scales import QueryScales
from server.model.blocks.tolerances import TOLERANCES
from server.model.blocks.workspace import PositionTables, Workspace
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.router import RouterSample, RouterWeights, find_router
from server.model.forward import Forward
from server.model.native_layers.adapters import NativeAdapters
from server.model.native_layers.embedding_rows import EmbeddingRows, norm_of_rows
from server.model.native_layers.expert_results import ExpertResults
from server.model.native_layers.far_trial import check_far
from server.model.native_layers.hash_router import HashRouter, find_hash_router
from server.model.native_layers.head_trial import Head, cap_logits, find_head
from server.model.native_layers.image_experts import ImageExperts
from server.model.native_layers.model import NativeModel
from server.model.native_layers.own_router import OwnRouter, find_own_router
from server.model.native_layers.parts import Parts, find_parts
from server.model.native_layers.positions import LayerPositions
from server.model.native_layers.residuals import find_residuals
from server.model.native_layers.router_kinds import (
    choices_agree,
    find_router_kind,
    logits_of,
    run_trial,
    steady_rows,
)
from server.model.native_layers.scales import ROUNDING, nearest_named
from server.model.native_layers.spec import build_layer
from server.model.native_layers.text_inputs import check_inputs, has_image_experts
from server.model.quantised.embedding import embedded_rows

ROUTER_ROUNDING = 10  # error of a router's scale, measured on few weights, by that of other factors


def find_native_layers(
    model: PreTrainedModel,
    forward: Forward,
    layers: Mapping[ExpertsModule, ExpertLayer],
    *,
    tokens: Sequence[int],
    kernels: Kernels,
    longest: int,
    recurrent: Collection[nn.Module] = (),
) -> NativeModel | str:
    """Return a model as the native kernels run it, or the reason why they can't.

    Args:
        model: with its weights.
        forward: calls the model.
        layers: the model's modules of experts.
        tokens: tokens to compare its layers on.
        kernels: that run it.
        longest: tokens of the longest sequence.
        recurrent: modules that keep states.
    """
    try:
        return _Finder(
            model, forward, layers, tokens=tokens, kernels=kernels, longest=longest, recurrent=recurrent
        ).find()
    except UnsupportedLayerError as error:
        return str(error)


class _Finder:
    def __init__(
        self,
        model: PreTrainedModel,
        forward: Forward,
        layers: Mapping[ExpertsModule, ExpertLayer],
        *,
        tokens: Sequence[int],
        kernels: Kernels,
        longest: int,
        recurrent: Collection[nn.Module],
    ):
        self._recurrent = recurrent
        self._is_usual = True  # the layers so far add results to the hidden states
        self._own_routers: dict[int, OwnRouter] = {}  # by layer, of those whose router has a norm of its own
        self._tables: dict[int, torch.Tensor] = {}  # by layer, of those whose router has the experts of each token
        self._others: dict[int, list[MixerParts]] = {}  # the kinds that a layer's mixer may be, but for those tried
        self._model, self._forward, self._layers, self._kernels = model, forward, layers, kernels
        self._tokens, self._longest = tokens, longest
        check_inputs(model)
        self._body, self._config = text_body(model), model.config.get_text_config()
        self._dtype = self._body.dtype  # towers may have another
        if decoder_layers(self._body) is None:
            raise UnsupportedLayerError("its layers have another name")
        self._embeddings: Any = model.get_input_embeddings()
        self._rotary: Any = next((each for each in self._body.children() if hasattr(each, "inv_freq")), None)
        if self._dtype not in TOLERANCES or model.device.type != "cpu":
            raise UnsupportedLayerError(f"it is computed in {self._dtype} on {model.device}")

    def find(self) -> NativeModel:
        keeps_states = bool(self._recurrent)
        captured = capture(self._model, self._forward, self._tokens, keeps_states=keeps_states)
        if [*dict.fromkeys(each.layer for each in captured.layers)] != [*(decoder_layers(self._body) or ())]:
            raise UnsupportedLayerError("not all of its layers are called")
        if any(not torch.equal(one.output, other.given) for one, other in pairwise(captured.layers)):
            raise UnsupportedLayerError("its hidden states change between its layers")
        parts = [find_parts(each.module, each, self._recurrent) for each in captured.layers]
        named = [each.with_mixer(found.mixer_module) for each, found in zip(captured.layers, parts, strict=True)]
        captured = replace(captured, layers=named)
        names = {module: name for name, module in self._model.named_modules()}
        layers = [
            self._build(each.module, index, found, each, names)
            for index, (found, each) in enumerate(zip(parts, captured.layers, strict=True))
        ]
        _check_choices(layers)
        images = self._build_images(layers, parts, captured, names)
        every = [*layers, *images]
        routed = [layer for layer in every if layer.experts is not None]
        routing = [each.routing for each in captured.layers if each.routing is not None]
        if not routed or len(routed) != len(self._layers):
            raise UnsupportedLayerError("not all of its experts are in its layers")
        if has_image_experts(self._model) and 2 * len(images) != len(routed):
            raise UnsupportedLayerError("not all of its experts have others for images beside them")
        top_k = max(each.top_k_index.shape[1] for each in routing)
        hidden_size, num_streams = captured.layers[0].hidden_size, captured.layers[0].num_streams
        num_experts = max(layer.mixture.num_experts for layer in routed)
        slot_bytes = [0 if each.experts is None else each.experts.layout.slot_bytes for each in every]
        self._workspace = Workspace(hidden_size, 1, top_k, num_experts, is_exact=True, num_streams=num_streams)
        self._trial = LayerTrial(self._kernels, self._workspace, self._tokens, slot_bytes)
        self._positions = LayerPositions(self._trial, layers, captured, self._longest, TOLERANCES[self._dtype])
        for layer, found, each in zip(layers, parts, captured.layers, strict=True):
            self._fit(layer, found, each)
        for layer, experts in images.items():
            self._find_router_kind(layer, experts.parts, experts.captured)
            self._check_router(layer, experts.parts, experts.captured)
            self._trial.check(layer.spec)
            experts.check(layer)
        echoed = capture(self._model, self._forward, self._tokens, keeps_states=keeps_states, echoes=True)
        ExpertResults(self._trial, self._positions, self._config, self._dtype).check(layers, echoed)
        for layer in layers:
            if isinstance(layer.mixer, RotaryMixer):
                layer.mixer.use_rope(self._positions.kind_of(layer))
        found_head = find_head(self._model, captured, self._kernels)
        head = found_head.call
        check_far(
            self._model,
            self._forward,
            self._tokens,
            near=captured,
            longest=self._longest,
            logits_of=lambda logits: cap_logits(logits, head),
            layers=layers,
            keeps_states=keeps_states,
        )
        workspace = Workspace(
            hidden_size,
            len(routed),
            top_k,
            num_experts,
            is_exact=self._dtype == torch.float32,
            num_streams=num_streams,
        )
        # The head's errors are errors of the logits, and its few rows cost little: only packed weights round them.
        head.is_exact = int(workspace.call.is_exact or head.matrix.format in PLAIN.values())
        return NativeModel(
            self._kernels,
            layers,
            workspace,
            positions=PositionTables(self._positions.kinds),
            query_scales=QueryScales([layer.mixer for layer in layers], self._longest),
            embedding=self._embedding(captured),
            head=head,
            keeps=found_head.keeps,
            adapters=self._adapters(every, found_head, names),
            rotary=self._rotary,
            dtype=self._dtype,
            image_layers=[*images],
        )

    def _adapters(self, layers: Sequence[NativeLayer], head: Head, names: Mapping[Any, str]) -> NativeAdapters:
        targets = {names[module]: target for layer in layers for module, target in layer.linears.items()}
        module, gates = head_of(self._model), {} if head.streams is None else head.streams.places(LoraPlace.INPUT_GATE)
        targets[names[module]] = NativeTarget(
            END, LoraPlace.HEAD, module.in_features, module.out_features, input_scale=head.input_scale
        )
        for place, linear in gates.items():
            targets[names[linear]] = NativeTarget(END, place, linear.in_features, linear.out_features)
        experts = [None if each.experts is None else (each.experts.number, len(each.experts.keys)) for each in layers]
        return NativeAdapters(targets, experts)

    def _build(
        self, module: nn.Module, index: int, parts: Parts, captured: LayerCapture, names: Mapping[Any, str]
    ) -> NativeLayer:
        known: Mapping[Any, ExpertLayer] = self._layers
        experts = next((each for each in module.modules() if each in known), None)
        router: RouterWeights | None = None
        layer: ExpertLayer | None = None
        if experts is not None:
            layer, routing = known[experts], captured.routing
            if routing is None:
                raise UnsupportedLayerError("a layer does not call its experts")
            if parts.is_router_apart:
                own = find_own_router(parts.router, len(layer.keys), routing.top_k_index.shape[1])
                router, self._own_routers[index] = own.weights, own
            elif (hashed := self._hash_router(parts, len(layer.keys), routing, names)) is not None:
                router, self._tables[index] = hashed.weights, hashed.table
            else:
                sample = RouterSample(routing.hidden_states, routing.top_k_index)
                num_identities = getattr(experts, "num_identities", 0)
                router = find_router(self._model, names[experts], sample, num_identities)
        found = build_layer(module, index, parts, layer, router=router, own=self._own_routers.get(index))
        if index in self._tables:
            table = self._tables[index]
            found.mixture.router.table, found.mixture.router.table_rows = found.kept.hold(table), len(table)
        if parts.residual_rows is not None:
            residuals = find_residuals(
                parts.residual_rows, captured, self._config, found.spec.residual_scale, is_usual=self._is_usual
            )
            self._is_usual &= not residuals.mixer
            found.spec.mixer_residual, found.spec.inner_residual = residuals.mixer, residuals.inner
            found.spec.residual_scale = residuals.scale
        self._others[index] = list(parts.mixers)
        self._build_mixer(found, captured)
        return found

    def _hash_router(
        self, parts: Parts, num_experts: int, routing: Routing, names: Mapping[Any, str]
    ) -> HashRouter | None:
        return find_hash_router(parts.router, names[parts.router], num_experts, self._tokens, routing)

    def _build_images(
        self, layers: Sequence[NativeLayer], parts: Sequence[Parts], captured: Capture, names: Mapping[Any, str]
    ) -> dict[NativeLayer, ImageExperts]:
        """Build the layers of experts for images, one for each layer that has such."""
        built: dict[NativeLayer, ImageExperts] = {}
        for layer, found, each in zip(layers, parts, captured.layers, strict=True):
            if found.images is not None:
                experts = ImageExperts(layer, found, found.images, each)
                name, index = names[found.images.experts], len(layers) + len(built)
                built[experts.build(self._model, name, index, self._layers)] = experts
        return built

    def _build_mixer(self, layer: NativeLayer, captured: LayerCapture) -> None:
        """Build a layer's mixer as the next kind that it may be."""
        place, others = LayerPlace(layer.spec.index, self._rotary, self._dtype), self._others[layer.spec.index]
        while True:
            parts = others.pop(0)
            try:
                layer.mixer = parts.build(captured, place)
            except UnsupportedLayerError:
                if not others:
                    raise
            else:
                break
        if captured.options is not None and captured.options.chosen is not None and layer.mixer.chosen_keys is None:
            raise UnsupportedLayerError(f"its {layer.mixer.name} takes the keys that an indexer chose")

    def _fit(self, layer: NativeLayer, parts: Parts, captured: LayerCapture) -> None:
        """Fit the mixer and find the kind of router, and compare what the layer adds with the modules' output.

        The router is found first: it may weight experts that are among what the layer adds.
        """
        if layer.experts is not None:
            self._find_router_kind(layer, parts, captured)
        self._fit_mixer(layer, captured)
        if layer.experts is not None:
            self._check_router(layer, parts, captured)
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
        tolerance = TOLERANCES[self._dtype]
        positions = self._positions.kinds[self._positions.kind_of(layer)]
        self._trial.set_positions(positions)
        layer.mixer.fit(self._trial.of_mixer(layer, captured, positions, tolerance))
        error = self._trial.error(layer, captured, self._dtype)
        if not error < tolerance:
            raise UnsupportedLayerError(f"its layers compute something else, off by {error:.1e} of what they add")

    def _find_router_kind(self, layer: NativeLayer, parts: Parts, captured: LayerCapture) -> None:
        """Find the kind of router by a trial of the modules alone."""
        routing, router, mixture = captured.routing, layer.router, layer.mixture
        assert routing is not None
        assert router is not None
        mixture.router.top_k = routing.top_k_index.shape[1]
        correction = None if router.correction is None else router.correction.double()
        own_router = self._own_routers.get(layer.spec.index)
        table = self._tables.get(layer.spec.index)
        trial = run_trial(parts.block, router, self._dtype, own_router, table)
        mixture.router = find_router_kind(mixture.router, parts.router, correction, trial, self._dtype)
        mixture.router.scale = nearest_named(
            mixture.router.scale, self._config, ROUTER_ROUNDING * ROUNDING[self._dtype]
        )

    def _check_router(self, layer: NativeLayer, parts: Parts, captured: LayerCapture) -> None:
        """Compare the kernels' choices with the modules'."""
        routing, router, mixture = captured.routing, layer.router, layer.mixture
        assert routing is not None
        assert router is not None
        correction = None if router.correction is None else router.correction.double()
        own_router = self._own_routers.get(layer.spec.index)
        table = self._tables.get(layer.spec.index)
        self._trial.run(layer, captured)
        top_k, tolerance = mixture.router.top_k, TOLERANCES[self._dtype]
        rows = routing.hidden_states
        if own_router is not None:
            rows = own_router.rows(next(each.given for each in captured.calls if each.module is parts.router))
        logits = logits_of(router, rows)
        given = None if table is None else routing.top_k_index
        _, _, is_steady = steady_rows(mixture.router, correction, logits, tolerance, given)
        chosen = torch.from_numpy(self._workspace.chosen(0, top_k).astype(np.int64))
        wanted, order = routing.top_k_index.sort(1)
        found, own_order = chosen.sort(1)
        is_same = (wanted == found).all(1) & is_steady  # (tokens,)
        weights = routing.top_k_weights.float().gather(1, order)[is_same]
        own = torch.from_numpy(self._workspace.weights(0, top_k)).gather(1, own_order)[is_same]
        are_near = (weights - own).abs() <= tolerance * routing.top_k_weights.abs().max()
        if not choices_agree(int(is_same.sum()), int(is_steady.sum()), self._dtype) or not bool(are_near.all()):
            raise UnsupportedLayerError("its router chooses other experts than the kernels do")

    def _embedding(self, captured: Capture) -> EmbeddingRows:
        """Find the norm of embeddings before the first layer, and their factor."""
        embedded = embedded_rows(self._embeddings, torch.tensor(self._tokens))
        norm = norm_of_rows(self._embeddings, embedded.shape[1])
        if norm is not None:
            embedded = norm.module(embedded.to(self._dtype)).float()
        given = captured.layers[0].given
        if captured.layers[0].num_streams:
            embedded = embedded.unsqueeze(1).expand_as(given)
        scale = float((embedded * given).sum() / embedded.square().sum())
        if not (embedded * scale - given).norm() <= TOLERANCES[self._dtype] * given.norm():
            raise UnsupportedLayerError("its embeddings are changed before the first layer")
        scale = nearest_named(scale, self._config, ROUNDING[self._dtype])
        return EmbeddingRows(self._kernels, self._embeddings, scale, norm)


def _check_choices(layers: Sequence[NativeLayer]) -> None:
    """Raise ``UnsupportedLayerError`` if a layer takes chosen keys, and no layer before it chooses as many."""
    latest = 0
    for layer in layers:
        chosen = layer.mixer.chosen_keys
        if chosen is not None and chosen.are_own:
            latest = chosen.top_k
        elif chosen is not None and chosen.top_k != latest:
            raise UnsupportedLayerError("its layers share chosen keys, and no indexer chooses them")
