"""Compiles a declaration for a CUDA device: finds what Triton's kernels run of each layer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from server.model.architecture import decoder_layers, text_body
from server.model.blocks.capture import RotaryCall
from server.model.blocks.cuda import CudaMixer, CudaPlace, RotaryTable
from server.model.blocks.declaration import MixerDeclaration, RotaryDeclaration
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.no_mixer.declaration import NoMixer
from server.model.blocks.table import PARTS
from server.model.cuda_layers.mlps import CudaMlp
from server.model.cuda_layers.routers import router_of
from server.model.declarations.declaration import Declaration, Layer, Router
from server.model.program import LayerTargets, ModelProgram, Target
from server.model.recurrent.states import StateShapes

log = logging.getLogger(__name__)

TAKES_KEYS = "is_kv_shared_layer"  # attribute of modules that use another layer's keys and values (Gemma 4)


class Part(Protocol):
    """A part of a layer that kernels run."""

    def install(self) -> None:
        """Let the layer call it in the place of its module."""


Found = TypeVar("Found", bound=Part)


@dataclass(frozen=True)
class CudaLayer:
    """The parts of a declared layer, None for those that its modules run."""

    name: str  # of the mixer's kind
    mixer: Sequence[Part | None]  # none, or one
    feed_forward: Sequence[Part | None]

    def install(self) -> None:
        """Let the layer call the parts in the places of their modules."""
        for part in (*self.mixer, *self.feed_forward):
            if part is not None:
                part.install()

    @property
    def targets(self) -> LayerTargets:
        """The program of the layer: what runs where."""
        mixer, others = (Target.MODULES if None in each else Target.CUDA for each in (self.mixer, self.feed_forward))
        return LayerTargets(self.name, mixer, others)


@torch.inference_mode()
def compile_for_cuda(
    model: PreTrainedModel,
    declared: Declaration,
    states: StateShapes,
    recurrent: Collection[nn.Module],
    *,
    replaces_mixers: bool,
) -> list[CudaLayer]:
    """Return what the kernels run of each layer.

    Args:
        model: with weights, on a device where Triton's kernels run.
        declared: what it is.
        states: of one sequence.
        recurrent: modules that keep these.
        replaces_mixers: False if all mixers stay modules.
    """
    compiler = _Compiler(model, declared, states, recurrent)
    modules, together = [*(decoder_layers(text_body(model)) or ())], declared.layers_in_one
    return [
        compiler.layer(modules[index // together], block, replaces_mixers)
        for index, block in enumerate(declared.layers)
    ]


def program_of(layers: Sequence[CudaLayer]) -> ModelProgram:
    """Return what runs where of a model with such layers."""
    return ModelProgram(tuple(layer.targets for layer in layers))


class _Compiler:
    def __init__(
        self,
        model: PreTrainedModel,
        declared: Declaration,
        states: StateShapes,
        recurrent: Collection[nn.Module],
    ):
        self._recurrent, self._dtype = recurrent, next(model.parameters()).dtype
        shares_keys = any(getattr(module, TAKES_KEYS, False) for module in model.modules())
        tables = [*_tables(model, declared)] or [None]
        self._places = [CudaPlace(model.device, table, states, shares_keys) for table in tables]

    def layer(self, module: nn.Module, declared: Layer, replaces_mixers: bool) -> CudaLayer:
        """Return the parts of a layer that the kernels run."""
        mixer: list[Part | None] = []
        if not isinstance(declared.mixer, NoMixer):
            mixer.append(_tried(partial(self._mixer, module, declared.mixer)) if replaces_mixers else None)
        return CudaLayer(type(declared.mixer).__name__, mixer, [*self._feed_forward(module, declared)])

    def _mixer(self, layer: nn.Module, declared: MixerDeclaration) -> CudaMixer:
        kind, rotary = PARTS[type(declared)], declared.rotary if isinstance(declared, RotaryDeclaration) else 0
        module = layer.get_submodule(declared.module)
        parts = kind.find(module, keeps_state=module in self._recurrent)
        if parts is None:
            raise UnsupportedLayerError(f"no kernel has a {type(module).__name__} of its parts")
        return parts.for_cuda(declared, self._places[rotary])

    def _feed_forward(self, layer: nn.Module, declared: Layer) -> Iterator[Part | None]:
        experts = declared.experts
        routers: list[Router] = [] if experts is None else [experts.router]
        if experts is not None and experts.images is not None:
            routers.append(experts.images.router)
        for router in routers:
            yield _tried(partial(router_of, layer.get_submodule(router.module), router, self._dtype))
        if declared.mlp is not None:
            yield _tried(partial(CudaMlp, layer.get_submodule(declared.mlp.module)))


def _tables(model: PreTrainedModel, declared: Declaration) -> Iterator[RotaryTable | None]:
    """Yield the tables of the model's kinds of rotary positions."""
    body, first = text_body(model), torch.zeros(1, dtype=torch.int64, device=model.device)
    for each in declared.rotary:
        call = RotaryCall(body.get_submodule(each.module), each.num_axes, tuple(each.arguments), each.named, None)
        yield RotaryTable.of(call.angles(first), each.columns)


def _tried(find: Callable[[], Found]) -> Found | None:
    """Return a part that the kernels run; None if they do not."""
    try:
        return find()
    except UnsupportedLayerError as error:
        log.debug("a part runs as a module: %s", error)
        return None
