"""CudaMixer: a mixer of a declared layer as Triton's kernels run it on a CUDA device, in the place of its module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import nn

from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.joined_linears import JoinedLinears
from server.model.blocks.linears import Linear
from server.model.blocks.workspace import PairAngles
from server.model.hooks import current_hooks
from server.model.recurrent.states import StateShapes

PAIR = 2  # cosines and sines


@dataclass(frozen=True)
class RotaryTable:
    """Cosines and sines of a kind of rotary positions, as the kernels read them."""

    num_rotated: int  # numbers of a head
    step: int  # numbers of a table from one angle to the next

    @classmethod
    def of(cls, angles: Any, columns: PairAngles) -> Self | None:
        """Return the table; None if the kernels can't read it.

        Args:
            angles: what the model's module returns for one position.
            columns: that give one angle a pair.
        """
        if not is_pair(angles) or any(each.shape[:-1] != (1, 1) or each.stride(-1) != 1 for each in angles):
            return None
        return cls(2 * columns.of(angles[0][0]).shape[1], 2 if columns is PairAngles.EVERY_OTHER else 1)


@dataclass(frozen=True)
class CudaPlace:
    """A layer in its model, for the kernels of a CUDA device."""

    device: torch.device
    table: RotaryTable | None  # None: its rotary positions can't be read
    states: StateShapes  # that the module keeps of a sequence
    shares_keys: bool  # some layers take the keys of others


class CudaMixer(ABC):
    """A mixer whose layer calls kernels in the place of its module.

    Args:
        module: of transformers, which runs what the kernels do not.
        linears: that project its input.
    """

    def __init__(self, module: Any, linears: Sequence[Linear]):
        self._module = module
        self.projections = JoinedLinears(linears)

    @property
    def has_hooks(self) -> bool:
        """True if something, such as an adapter, is added to a projection, which only the module adds."""
        return self.projections.has_hooks

    @abstractmethod
    def install(self) -> None:
        """Let the layer call it in the place of its module."""


class CudaAttention(CudaMixer):
    """An attention that projects, prepares its heads in one launch, and attends.

    In a step whose hooks don't attend to projections, or whose adapters change one, the module runs as it is.
    """

    attends: ClassVar[str]  # name of the hook that attends to projections

    def install(self) -> None:
        self.projections.join()
        self._original: Callable[..., Any] = self._module.forward
        self._module.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        attend = getattr(current_hooks(), self.attends, None)
        if attend is None or self.has_hooks:
            return self._original(*args, **kwargs)
        hidden: torch.Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        angles = next((each for each in (*kwargs.values(), *args) if is_pair(each)), None)
        output = self.run(attend, hidden.flatten(0, -2), angles)
        return self.project(output.view(*hidden.shape[:-1], -1)), None

    @abstractmethod
    def run(self, attend: Any, rows: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """Return what the output projection takes, ``(tokens, ...)``.

        Args:
            attend: the step's hook.
            rows: ``(tokens, hidden)``.
            angles: cosines and sines, ``(1, tokens, numbers)``.
        """

    @property
    @abstractmethod
    def project(self) -> nn.Module:
        """The output projection."""


def is_pair(value: Any) -> bool:
    """Return whether an argument of a module is a pair of tensors, as cosines and sines are."""
    return isinstance(value, tuple) and len(value) == PAIR and all(isinstance(each, torch.Tensor) for each in value)


def check_known(parts: dict[str, Any]) -> None:
    """Raise ``UnsupportedLayerError`` if a module has one of the parts that kernels do not know.

    Args:
        parts: by what they are.
    """
    unknown = [name for name, part in parts.items() if part]
    if unknown:
        raise UnsupportedLayerError(f"no kernel has {' and '.join(unknown)}")
