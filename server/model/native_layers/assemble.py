"""Builds the native layers of a model from its own weights and from what trials found on its twin."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from server.kernels.expert import ExpertsModule
from server.kernels.native.library import Kernels, impossible
from server.kernels.native.slot_format import PLAIN
from server.kernels.native.structures.adapters import LoraPlace
from server.model.architecture import decoder_layers, head_of, text_body
from server.model.blocks.adapter_places import END, NativeTarget
from server.model.blocks.capture import LayerCapture
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.layer import NativeLayer
from server.model.blocks.layer_recorder import SubLayer
from server.model.blocks.mixer import RotaryMixer
from server.model.blocks.query_scales import QueryScales
from server.model.blocks.workspace import PositionTables, Workspace
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.router import RouterWeights
from server.model.native_layers.adapters import NativeAdapters
from server.model.native_layers.embedding_rows import EmbeddingRows, norm_of_rows
from server.model.native_layers.hash_router import table_of
from server.model.native_layers.head_trial import Head, build_head
from server.model.native_layers.image_experts import ImageExperts
from server.model.native_layers.layer_builder import NO_ROUTER, LayerBuilder, LayerRouter
from server.model.native_layers.model import NativeModel
from server.model.native_layers.own_router import find_own_router
from server.model.native_layers.parts import Parts, factor_of
from server.model.native_layers.recognise import Recognition


def assemble(
    model: PreTrainedModel,
    recognition: Recognition,
    experts: Mapping[ExpertsModule, ExpertLayer],
    *,
    kernels: Kernels,
    longest: int,
    recurrent: Collection[nn.Module],
) -> NativeModel:
    """Return a model as the native kernels run it.

    Args:
        model: with its weights.
        recognition: of its twin.
        experts: the layers of its modules of experts.
        kernels: that run it.
        longest: tokens of the longest sequence.
        recurrent: modules that keep states.

    Raises:
        UnsupportedLayerError: its weights have a format that the kernels do not read, or sizes that do not fit.
    """
    return _Assembly(LayerBuilder(model, experts, recurrent), recognition).build(kernels, longest)


class _Assembly:
    def __init__(self, builder: LayerBuilder, recognition: Recognition):
        self._builder, self._model, self._found = builder, builder.model, recognition
        own, twin = ([*(decoder_layers(text_body(each)) or ())] for each in (self._model, recognition.twin.model))
        widths = _Widths(text_body(recognition.twin.model), text_body(self._model))
        self._places: list[tuple[_Counterparts, int]] = []  # of each block: its layer beside the twin's, and the twin's
        for layer, index in zip(own, recognition.twin.layer_of, strict=True):
            beside = _Counterparts(layer, twin[index], builder.names, recognition.twin.model, widths)
            self._places += [(beside, block) for block in recognition.blocks_of(index)]

    def build(self, kernels: Kernels, longest: int) -> NativeModel:
        captured = [beside.capture(self._found.captured.layers[block]) for beside, block in self._places]
        parts = [self._builder.parts_of(each) for each in captured]
        captured = [each.with_mixer(found.mixer_module) for each, found in zip(captured, parts, strict=True)]
        layers = [
            self._build(index, found, each) for index, (found, each) in enumerate(zip(parts, captured, strict=True))
        ]
        images = self._build_images(layers, parts, captured)
        every = [*layers, *images]
        routed = [layer for layer in layers if layer.experts is not None]
        first = captured[0]
        is_exact, hidden_size = self._builder.dtype == torch.float32, first.hidden_size
        for each in every:
            slot_bytes = 0 if each.experts is None else each.experts.layout.slot_bytes
            reason = impossible("greenroom_check_layer", each.spec, hidden_size, slot_bytes)
            if reason is not None:
                raise UnsupportedLayerError(f"it has {reason}")
        workspace = Workspace(
            hidden_size,
            len(routed) + len(images),
            max(layer.mixture.router.top_k for layer in routed),
            max(layer.mixture.num_experts for layer in (*routed, *images)),
            is_exact=is_exact,
            num_streams=first.num_streams,
        )
        head = build_head(self._model, hidden_size, first.num_streams, self._found.head)
        # The head's errors are errors of the logits, and its few rows cost little: only packed weights round them.
        head.call.is_exact = int(is_exact or head.call.matrix.format in PLAIN.values())
        embeddings: Any = self._model.get_input_embeddings()
        norm, scale = norm_of_rows(embeddings, hidden_size), self._found.embedding_scale_in(self._builder.dtype)
        return NativeModel(
            kernels,
            layers,
            workspace,
            positions=PositionTables(self._found.positions.of(self._model, self._found.twin.model)),
            query_scales=QueryScales([layer.mixer for layer in layers], longest),
            embedding=EmbeddingRows(kernels, embeddings, scale, norm),
            head=head.call,
            keeps=head.keeps,
            adapters=self._adapters(every, head),
            rotary=self._builder.rotary,
            dtype=self._builder.dtype,
            image_layers=images,
        )

    def _build(self, index: int, parts: Parts, captured: LayerCapture) -> NativeLayer:
        beside, block = self._places[index]
        found = self._found.layers[block]
        router = self._router(beside, self._found.routers[block], parts)
        layer = self._builder.build(index, parts, captured, router)
        kind = self._found.mixers[block]
        self._builder.build_mixer(layer, captured, [each for each in parts.mixers if type(each) is kind])
        layer.take(found)
        if router is not NO_ROUTER:
            layer.mixture.router.scale *= router.factor / self._found.routers[block].factor
        if isinstance(layer.mixer, RotaryMixer):
            layer.mixer.use_rope(self._found.positions.kind_of(found))
        return layer

    def _router(self, beside: _Counterparts, found: LayerRouter, parts: Parts) -> LayerRouter:
        if found is NO_ROUTER or found.weights is None:
            return found
        if found.own is not None:
            own = find_own_router(parts.router, len(found.weights.weight), found.weights.top_k)
            return LayerRouter(own.weights, own)
        table = None if found.table is None else table_of(parts.router)
        return LayerRouter(beside.router(found.weights), table=table, factor=factor_of(parts.router))

    def _build_images(
        self, layers: Sequence[NativeLayer], parts: Sequence[Parts], captured: Sequence[LayerCapture]
    ) -> list[NativeLayer]:
        """Build the layers of experts for images, one for each layer that has such."""
        built: list[NativeLayer] = []
        for index, (beside, block) in enumerate(self._places):
            if block not in self._found.images:
                continue
            experts, found = self._found.images[block]
            images, weights = parts[index].images, self._found.routers[found.spec.index].weights
            assert images is not None
            own = ImageExperts(layers[index], parts[index], images, captured[index], experts.routing)
            router = None if weights is None else beside.router(weights)
            built.append(own.build(len(layers) + len(built), self._builder.experts, router))
            built[-1].take(found)
        return built

    def _adapters(self, layers: Sequence[NativeLayer], head: Head) -> NativeAdapters:
        names = self._builder.names
        targets = {names[module]: target for layer in layers for module, target in layer.linears.items()}
        module, gates = head_of(self._model), {} if head.streams is None else head.streams.places(LoraPlace.INPUT_GATE)
        targets[names[module]] = NativeTarget(
            END, LoraPlace.HEAD, module.in_features, module.out_features, input_scale=head.input_scale
        )
        for place, linear in gates.items():
            targets[names[linear]] = NativeTarget(END, place, linear.in_features, linear.out_features)
        experts = [None if each.experts is None else (each.experts.number, len(each.experts.keys)) for each in layers]
        return NativeAdapters(targets, experts)


class _Widths:
    """The hidden sizes of a twin and of the other model.

    Args:
        twin: the body of one.
        other: that of the other.
    """

    def __init__(self, twin: Any, other: Any):
        self._own, self._other = (int(each.config.hidden_size) for each in (twin, other))
        self._known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by the first one's id

    def widened(self, rows: torch.Tensor) -> torch.Tensor:
        """Return hidden states of the twin with zeros behind them, as wide as those of the other model."""
        count, rest = divmod(rows.shape[-1], self._own)
        if self._own == self._other or rest:
            return rows
        if id(rows) not in self._known:
            more = count * (self._other - self._own)
            self._known[id(rows)] = rows, F.pad(rows, (0, more))
        return self._known[id(rows)][1]


class _Counterparts:
    """A layer beside its twin's layer of the same kind.

    Args:
        layer: of the model.
        other: the twin's.
        names: of the model's modules.
        twin: the other model.
        widths: of both.

    Raises:
        UnsupportedLayerError: the layer has other modules than the twin's.
    """

    def __init__(self, layer: nn.Module, other: nn.Module, names: Mapping[Any, str], twin: nn.Module, widths: _Widths):
        self._layer, self._other, self._widths = layer, other, widths
        own = dict(layer.named_modules())
        try:
            self._modules: dict[Any, nn.Module] = {each: own[name] for name, each in other.named_modules()}
        except KeyError as error:
            raise UnsupportedLayerError(f"its layers lack {error}, which its config names") from error
        self._prefix = f"{names[layer]}."
        self._other_prefix = f"{next(name for name, each in twin.named_modules() if each is other)}."

    def module(self, other: Any) -> Any:
        """Return the counterpart of a module of the twin's layer."""
        if isinstance(other, SubLayer):
            return SubLayer([(name, self._modules[each]) for name, each in other.named_children()])
        return self._modules[other]

    def capture(self, other: LayerCapture) -> LayerCapture:
        """Return a call of the twin's layer as one of the layer, with as wide rows, whose numbers are the twin's."""
        wide = self._widths.widened
        calls = [
            replace(
                each,
                call=replace(each.call, module=self._modules[each.module]),
                given=wide(each.given),
                output=wide(each.output),
            )
            for each in other.calls
        ]
        options = other.options
        if options is not None and options.sinks is not None:
            options = replace(options, sinks=self._tensor_like(options.sinks))
        return replace(
            other,
            given=wide(other.given),
            output=wide(other.output),
            layer=self._layer,
            module=self.module(other.module),
            calls=calls,
            options=options,
            mixer=None,
        )

    def router(self, other: RouterWeights) -> RouterWeights:
        """Return the weights of the counterpart of a router."""
        names = {role: self._prefix + name.removeprefix(self._other_prefix) for role, name in other.names.items()}
        tensors = dict(self._layer.named_parameters()) | dict(self._layer.named_buffers())
        found = {role: tensors[name.removeprefix(self._prefix)] for role, name in names.items()}
        if "correction" in found:
            found["correction"] = found["correction"].detach().flatten()
        return replace(other.with_tensors(found), names=names)

    def _tensor_like(self, other: torch.Tensor) -> torch.Tensor:
        """Return the counterpart of a parameter of the twin's layer, or of a view of it."""
        for name, each in self._other.named_parameters():
            if each.numel() == other.numel() and torch.equal(each.detach().flatten(), other.flatten().to(each.dtype)):
                found = self._layer.get_parameter(name).detach()
                return found.flatten() if other.ndim == 1 else found.view(other.shape)
        raise UnsupportedLayerError("its sinks are no parameters of its layers")
