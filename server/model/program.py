"""ModelProgram: the layers of a model, and the target that runs each part of them.

The one answer to "what runs where", for serving, inspecting and the log alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import groupby
from typing import Any, Self

from torch import nn

from server.model.architecture import text_part

ENCODER_REASON = "it is an encoder, which reads whole sequences in both directions"
NO_KERNELS = "there are no native kernels"


class Target(StrEnum):
    """Runs parts of a model."""

    NATIVE = "native"  # fused operations of the native kernels
    CUDA = "cuda"  # Triton's kernels, which layers of transformers call in the places of their modules
    MODULES = "modules"  # transformers' modules, whose attention and experts call our hooks
    TRANSFORMERS = "transformers"  # transformers with its own attention and cache, one sequence after the other


@dataclass(frozen=True)
class LayerTargets:
    """Targets of a layer: of its mixer, where tokens see others, and of its feed-forward part, where they do not."""

    name: str  # class of the module that mixes its tokens, or of the complete layer
    mixer: Target
    feed_forward: Target


@dataclass(frozen=True)
class Segment:
    """Neighbouring parts of layers with one target."""

    target: Target
    num_parts: int


@dataclass(frozen=True)
class ModelProgram:
    """The layers of a model in the order in which they run. Embedding and head have the target of most of them."""

    layers: tuple[LayerTargets, ...]
    reason: str | None = None  # why it does not run natively, if no part does

    @classmethod
    def uniform(cls, model: Any, target: Target, reason: str | None) -> Self:
        """Return the program of a model that one target runs completely.

        Args:
            model: of transformers.
            target: runs all of it.
            reason: why that is not the native one, if it is not.
        """
        lists = (module for module in text_part(model).modules() if isinstance(module, nn.ModuleList))
        layers: nn.ModuleList = next(lists, nn.ModuleList())
        return cls(tuple(LayerTargets(type(layer).__name__, target, target) for layer in layers), reason)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The runs of neighbouring parts with one target: one if a target runs everything."""
        return tuple(Segment(target, len(list(parts))) for target, parts in groupby(self._parts()))

    @cached_property
    def is_native(self) -> bool:
        """True if the native kernels run everything."""
        return bool(self.layers) and all(part is Target.NATIVE for part in self._parts())

    @cached_property
    def has_native(self) -> bool:
        """True if the native kernels run some parts."""
        return Target.NATIVE in self._parts()

    @property
    def is_hybrid(self) -> bool:
        """True if the native kernels run everything around modules as mixers."""
        return self.has_native and not self.is_native

    @cached_property
    def is_sequential(self) -> bool:
        """True if one sequence runs after the other."""
        return Target.TRANSFORMERS in self._parts()

    @property
    def sequential_reason(self) -> str | None:
        """The reason that one sequence runs after the other; None if a step takes many."""
        return self.reason if self.is_sequential else None

    def describe(self) -> str:
        """Say in a line what runs where."""
        if self.is_native:
            return f"native kernels run all {len(self.layers)} layers"
        if self.is_hybrid:
            mixers = Counter(layer.name for layer in self.layers if layer.mixer is not Target.NATIVE)
            named = " and ".join(f"{name} in {count}" for name, count in mixers.items())
            return f"transformers' modules run {named} of {len(self.layers)} layers, and native kernels run the rest"
        if self.is_sequential:
            return f"requests run one at a time, with transformers' attention and cache, because {self.reason}"
        if self.reason is not None:
            return f"transformers' modules run all layers, because {self.reason}"
        num_mixers = sum(layer.mixer is Target.CUDA for layer in self.layers)
        num_others = sum(layer.feed_forward is Target.CUDA for layer in self.layers)
        return (
            f"Triton's kernels run mixers in {num_mixers} and feed-forward parts in {num_others} of {len(self.layers)} "
            "layers, transformers' modules the rest"
        )

    def _parts(self) -> Iterator[Target]:
        for layer in self.layers:
            yield layer.mixer
            yield layer.feed_forward
