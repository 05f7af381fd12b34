"""Compiles a declaration: builds the native layers of a model from its modules, whose weights they read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from server.kernels.expert import ExpertsModule
from server.kernels.native.library import Kernels, impossible
from server.kernels.native.slot_format import PLAIN
from server.kernels.native.structures.adapters import LoraPlace
from server.kernels.native.structures.layers import Mixture
from server.model.architecture import decoder_layers, head_of, text_body
from server.model.blocks.adapter_places import END, NativeTarget
from server.model.blocks.block_attention import BlockAttentionParts, in_layer
from server.model.blocks.capture import RotaryCall
from server.model.blocks.declaration import RotaryDeclaration
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.layer import NativeLayer
from server.model.blocks.mixer import LayerPlace, RotaryMixer
from server.model.blocks.ngrams import NgramParts
from server.model.blocks.no_mixer.mixer import NoMixer
from server.model.blocks.no_mixer.parts import NoMixerParts
from server.model.blocks.norms import Norm, norm_of
from server.model.blocks.query_scales import QueryScales
from server.model.blocks.residual_convolution import ResidualConvolution
from server.model.blocks.residual_gates import ResidualGateParts
from server.model.blocks.streams import StreamMixParts, stream_parts_of
from server.model.blocks.table import PARTS
from server.model.blocks.workspace import PairAngles, Positions, PositionTables, Workspace
from server.model.declarations.declaration import Declaration, Experts, ImageExperts, Layer, Mlp, Router
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.router import RouterWeights
from server.model.native_layers.adapters import NativeAdapters
from server.model.native_layers.embedding_rows import EmbeddingRows, norm_of_rows
from server.model.native_layers.head import Head, build_head
from server.model.native_layers.model import NativeModel
from server.model.native_layers.own_router import find_own_router
from server.model.native_layers.parts import Dense, Parts, Projections, dense_of, factor_of, output_scale_of
from server.model.native_layers.router_mlp import RouterMlpParts
from server.model.native_layers.shared_experts import SharedExperts
from server.model.native_layers.spec import LayerRouter, build_layer, rotary_of, table_of


def compile_model(
    model: PreTrainedModel,
    declared: Declaration,
    experts: Mapping[ExpertsModule, ExpertLayer],
    *,
    kernels: Kernels,
    longest: int,
) -> NativeModel:
    """Return a model as the native kernels run it.

    Args:
        model: with its weights.
        declared: what it is.
        experts: the layers of its modules of experts.
        kernels: that run it.
        longest: tokens of the longest sequence.

    Raises:
        UnsupportedLayerError: its weights have a format that the kernels do not read, or it is not what was declared.
    """
    try:
        return _Compiler(model, declared, experts, longest).build(kernels)
    except AttributeError as error:  # of ``nn.Module.get_submodule`` and ``get_parameter``
        raise UnsupportedLayerError(f"it lacks a part that its family has: {error}") from error


class _Compiler:
    def __init__(
        self,
        model: PreTrainedModel,
        declared: Declaration,
        experts: Mapping[ExpertsModule, ExpertLayer],
        longest: int,
    ):
        self._model, self._declared, self._experts, self._longest = model, declared, experts, longest
        body: Any = text_body(model)
        self._body, self._dtype = body, body.dtype  # towers may have another
        self._rotary = rotary_of(body)
        self._hidden_size = int(model.config.get_text_config().hidden_size)
        self._positions = [*self._find_positions()]
        for each in self._positions:
            each.grow(0)  # which finds the numbers that are rotated

    def build(self, kernels: Kernels) -> NativeModel:
        own: Sequence[nn.Module] = [*(decoder_layers(self._body) or ())]
        declared, together = self._declared.layers, self._declared.layers_in_one
        if len(own) * together != len(declared):
            raise UnsupportedLayerError(f"it has {len(own)} layers, and {len(declared)} were declared")
        places = [(own[index // together], block) for index, block in enumerate(declared)]
        layers: list[NativeLayer] = []
        images: list[NativeLayer] = []
        for index, (layer, block) in enumerate(places):
            num_blocks = sum(before.starts_block for before in declared[:index])
            compiler = _LayerCompiler(layer, block, self._experts, self._hidden_size, num_blocks=num_blocks)
            layers.append(compiler.build(index))
            self._add_mixer(layers[-1], layer, block)
        for layer, block in places:
            if block.experts is not None and block.experts.images is not None:
                compiler = _LayerCompiler(layer, block, self._experts, self._hidden_size)
                images.append(compiler.build_images(len(layers) + len(images), block.experts.images))
        return self._model_of(kernels, layers, images)

    def _model_of(self, kernels: Kernels, layers: Sequence[NativeLayer], images: Sequence[NativeLayer]) -> NativeModel:
        every, size, streams = [*layers, *images], self._hidden_size, self._declared.num_streams
        for each in every:
            slot_bytes = 0 if each.experts is None else each.experts.layout.slot_bytes
            reason = impossible("greenroom_check_layer", each.spec, size, slot_bytes)
            if reason is not None:
                raise UnsupportedLayerError(f"it has {reason}")
        routed = [layer for layer in every if layer.experts is not None]
        is_exact = self._dtype == torch.float32
        workspace = Workspace(
            size,
            len(routed),
            max(layer.mixture.router.top_k for layer in routed),
            max(layer.mixture.num_experts for layer in routed),
            is_exact=is_exact,
            num_streams=streams,
        )
        head = build_head(self._model, size, streams, self._declared)
        # The head's errors are errors of the logits, and its few rows cost little: only packed weights round them.
        head.call.is_exact = int(is_exact or head.call.matrix.format in PLAIN.values())
        embeddings: Any = self._model.get_input_embeddings()
        scale = self._declared.embedding_scale
        if self._declared.is_scale_rounded:
            scale = float(torch.tensor(scale, dtype=self._dtype))
        return NativeModel(
            kernels,
            layers,
            workspace,
            positions=PositionTables(self._positions),
            query_scales=QueryScales([layer.mixer for layer in layers], self._longest),
            embedding=EmbeddingRows(kernels, embeddings, scale, norm_of_rows(embeddings, size, self._body)),
            head=head.call,
            keeps=head.keeps,
            adapters=self._adapters(every, head),
            rotary=self._rotary,
            dtype=self._dtype,
            image_layers=images,
        )

    def _find_positions(self) -> Iterator[Positions]:
        for each in self._declared.rotary:
            module = self._body.get_submodule(each.module)
            call = RotaryCall(module, each.num_axes, tuple(each.arguments), each.named, None)
            yield Positions(call.angles, each.columns, self._longest)
        if not self._declared.rotary:
            yield Positions(None, PairAngles.ALL, self._longest)

    def _add_mixer(self, layer: NativeLayer, module: nn.Module, block: Layer) -> None:
        declared = block.mixer
        kind = PARTS[type(declared)]
        parts = (
            NoMixerParts()
            if kind is NoMixerParts
            else kind.find(module.get_submodule(declared.module), keeps_state=kind.keeps_state)
        )
        if parts is None:
            raise UnsupportedLayerError(f"{declared.module} is no {type(declared).__name__}")
        layer.mixer = mixer = parts.build(declared, LayerPlace(layer.spec.index, self._rotary, self._dtype))
        if isinstance(mixer, RotaryMixer) and isinstance(declared, RotaryDeclaration):
            mixer.use_rope(declared, self._positions[declared.rotary].rotary_dim)

    def _adapters(self, layers: Sequence[NativeLayer], head: Head) -> NativeAdapters:
        names = {module: name for name, module in self._model.named_modules()}
        targets = {names[module]: target for layer in layers for module, target in layer.linears.items()}
        module, gates = head_of(self._model), {} if head.streams is None else head.streams.places(LoraPlace.INPUT_GATE)
        targets[names[module]] = NativeTarget(
            END, LoraPlace.HEAD, module.in_features, module.out_features, input_scale=head.input_scale
        )
        for place, linear in gates.items():
            targets[names[linear]] = NativeTarget(END, place, linear.in_features, linear.out_features)
        experts = [None if each.experts is None else (each.experts.number, len(each.experts.keys)) for each in layers]
        return NativeAdapters(targets, experts)


class _LayerCompiler:
    """Builds one layer without its mixer.

    Args:
        module: the layer of transformers.
        declared: the layer, or one of its blocks.
        experts: the layers of all modules of experts.
        hidden_size: numbers of a row.
        num_blocks: blocks of layers that have begun before it.
    """

    def __init__(
        self,
        module: nn.Module,
        declared: Layer,
        experts: Mapping[ExpertsModule, ExpertLayer],
        hidden_size: int,
        *,
        num_blocks: int = 0,
    ):
        self._num_blocks = num_blocks
        self._module, self._declared, self._experts, self._hidden_size = module, declared, experts, hidden_size

    def build(self, index: int) -> NativeLayer:
        declared = self._declared
        experts, router = declared.experts, None
        if experts is not None:
            router = self._router(experts.router)
        parts = self._parts()
        layer = build_layer(
            self._module,
            index,
            parts,
            None if parts.experts is None else self._experts[parts.experts],
            router=None if router is None else router.weights,
            own=None if router is None else router.own,
            router_mlp=None if router is None else router.mlp,
        )
        layer.spec.mixer_residual, layer.spec.inner_residual = declared.mixer_residual, declared.inner_residual
        layer.spec.residual_scale, layer.spec.adds_deferred = declared.residual_scale, int(declared.adds_deferred)
        if experts is not None and router is not None:
            _set_mixture(layer, experts, experts.router, router)
        return layer

    def build_images(self, index: int, declared: ImageExperts) -> NativeLayer:
        """Build a layer of experts for images alone, whose results the model's layer adds."""
        own = self._declared.experts
        assert own is not None
        router = self._router(declared.router)
        module: Any = self._module.get_submodule(declared.module)
        parts = replace(
            self._parts(),
            input_norm=None,
            mixer_norm=None,
            output_norm=None,
            experts=module,
            experts_norm=None,
            router=self._module.get_submodule(declared.router.module),
            dense=None,
            shared=None,
            scale=None,
        )
        block = self._module.get_submodule(declared.block)
        layer = build_layer(block, index, parts, self._experts[module], router=router.weights)
        _set_mixture(layer, own, declared.router, router)
        layer.mixer = NoMixer(index)
        return layer

    def _parts(self) -> Parts:
        declared, experts = self._declared, self._declared.experts
        shared = None
        if experts is not None and experts.shared is not None:
            shared = SharedExperts.find(self._module.get_submodule(experts.shared), self._of(experts.module))
        return Parts(
            input_norm=self._norm(declared.input_norm),
            mixer_norm=self._norm(declared.mixer_norm),
            inner_norm=self._norm(declared.inner_norm),
            output_norm=self._norm(declared.output_norm),
            is_parallel=declared.is_parallel,
            experts=None if experts is None else self._of(experts.module),
            experts_norm=None if experts is None else self._norm(experts.norm),
            router=None if experts is None else self._of(experts.router.module),
            dense=None if declared.mlp is None else self._dense(declared.mlp),
            scale=output_scale_of(self._module),
            shared=shared,
            projections=None if experts is None else self._projections(experts),
            mixer_residual_gate=self._residual_gate(declared.mixer_residual_gate),
            inner_residual_gate=self._residual_gate(declared.inner_residual_gate),
            mixer_convolution=self._convolution(declared.mixer_convolution),
            output_convolution=self._convolution(declared.output_convolution),
            streams=self._streams(),
            other_norms=self._other_norms(),
            ngrams=None if declared.ngrams is None else NgramParts.find(self._of(declared.ngrams)),
        )

    def _of(self, name: str) -> Any:
        return self._module.get_submodule(name)

    def _norm(self, name: str | None) -> Norm | None:
        if name is None:
            return None
        norm = norm_of(self._of(name), self._hidden_size)
        if norm is None:
            raise UnsupportedLayerError(f"{name} is no norm")
        return norm

    def _convolution(self, name: str | None) -> ResidualConvolution | None:
        found = None if name is None else ResidualConvolution.find(self._of(name))
        if found is None and name is not None:
            raise UnsupportedLayerError(f"{name} is no convolution of each channel")
        return found

    def _residual_gate(self, name: str | None) -> ResidualGateParts | None:
        found = None if name is None else ResidualGateParts.find(self._of(name))
        if found is None and name is not None:
            raise UnsupportedLayerError(f"{name} does not weight a sum by channel")
        return found

    def _projections(self, declared: Experts) -> Projections | None:
        given, back = declared.input_projection, declared.output_projection
        if given is None or back is None:
            return None
        norm = None if declared.projected_norm is None else self._of(declared.projected_norm)
        return Projections.of(self._of(given), self._of(back), norm)

    def _other_norms(self) -> list[Norm]:
        names = self._declared.key_input_norm, self._declared.value_input_norm
        return [norm for name in names if (norm := self._norm(name)) is not None]

    def _streams(self) -> Sequence[StreamMixParts]:
        found = [self._stream(name) for name in self._declared.streams if name]
        attending = [each for each in found if isinstance(each, BlockAttentionParts)]
        if not attending:
            return found
        starts, norms = self._declared.starts_block, self._other_norms()
        return in_layer(attending, num_blocks=self._num_blocks, starts=starts, norms=norms)

    def _stream(self, name: str) -> StreamMixParts:
        found = stream_parts_of(self._of(name))
        if found is None:
            raise UnsupportedLayerError(f"{name} does not mix the rows of a residual stream")
        return found

    def _dense(self, declared: Mlp) -> Dense:
        found = dense_of(self._of(declared.module))
        if found is None:
            raise UnsupportedLayerError(f"{declared.module} is no MLP")
        weighting = None if declared.weighting is None else self._of(declared.weighting)
        return replace(
            found,
            weighting=weighting,
            input_norm=self._norm(declared.input_norm),
            output_norm=self._norm(declared.output_norm),
            scale=found.scale * declared.scale,
        )

    def _router(self, declared: Router) -> LayerRouter:
        module: Any = self._of(declared.module)
        if declared.weight is None:
            number = sum(each.out_features for each in module.children() if isinstance(each, nn.Linear))
            own = find_own_router(module, number, declared.top_k)
            return LayerRouter(own.weights, own, factor=factor_of(module))
        names = {"weight": declared.weight, "bias": declared.bias, "correction": declared.correction}
        tensors = {role: self._tensor(name) for role, name in names.items() if name is not None}
        correction = tensors.get("correction")
        weights = RouterWeights(
            tensors["weight"],
            tensors.get("bias"),
            None if correction is None else correction.detach().flatten(),
            torch.sigmoid,
            top_k=declared.top_k,
            num_shared=declared.num_shared,
            logits_scale=declared.logits_scale,
            num_skips=declared.num_skips,
        )
        if declared.has_mlp:
            mlp = RouterMlpParts.find(module)
            if mlp is None:
                raise UnsupportedLayerError(f"{declared.module} has no MLP")
            return LayerRouter(weights, mlp=mlp)
        return LayerRouter(weights, table=table_of(module) if declared.has_table else None, factor=factor_of(module))

    def _tensor(self, name: str) -> torch.Tensor:
        owner, _, own = name.rpartition(".")
        found: torch.Tensor = getattr(self._of(owner), own)
        return found


def _set_mixture(layer: NativeLayer, experts: Experts, declared: Router, router: LayerRouter) -> None:
    mixture: Mixture = layer.mixture
    mixture.experts_scale, mixture.is_deferred = experts.scale, int(experts.is_deferred)
    own = mixture.router
    own.kind, own.top_k, own.is_normalised = declared.kind, declared.top_k, int(declared.is_normalised)
    own.num_groups, own.top_groups, own.is_by_best = declared.groups, declared.top_groups, int(declared.is_by_best)
    own.scale, own.near = declared.scale * router.factor, declared.near
    if router.table is not None:
        own.table, own.table_rows = layer.kept.hold(router.table), len(router.table)
