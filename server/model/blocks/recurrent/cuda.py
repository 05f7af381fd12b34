"""CudaRecurrentMixer: a mixer with states on a CUDA device, whose steps of single tokens run between two products."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from server.model.blocks.cuda import CudaMixer, CudaPlace
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.linears import Linear
from server.model.blocks.recurrent.mixer import CONV, RECURRENT
from server.model.recurrent.recurrent_modules import SplitForward
from server.model.recurrent.states import RecurrentBatch, StateCache, StateKey

if TYPE_CHECKING:
    from server.model.blocks.recurrent.triton_step import Convolution
    from server.model.blocks.recurrent.triton_step import Rows as StateRows


class CudaRecurrentMixer(CudaMixer):
    """Steps of single tokens of one mixer; its module, which runs batch by batch, runs the others.

    Args:
        module: of transformers.
        linears: that project its input.
        output: projects what it makes of them.
        place: of the layer.
        shapes: that states must have for the kernels, by kind; the last number of a convolution's may be any.

    Raises:
        UnsupportedLayerError: its states are others.
    """

    def __init__(
        self,
        module: Any,
        linears: Sequence[Linear],
        output: Linear,
        place: CudaPlace,
        shapes: Mapping[str, tuple[int, ...]],
    ):
        super().__init__(module, linears)
        layer, self._output = int(module.layer_idx), output
        self._conv, self._state = StateKey(layer, CONV), StateKey(layer, RECURRENT)
        own = {key: state.shape for key, state in place.states.items() if key.layer == layer}
        wanted = {StateKey(layer, kind): shape for kind, shape in shapes.items()}
        if own.keys() != wanted.keys() or any(own[key][: len(shape)] != shape for key, shape in wanted.items()):
            raise UnsupportedLayerError("no kernel has its states")

    def install(self) -> None:
        split = self._module.forward
        assert isinstance(split, SplitForward)
        self.projections.join()
        split.fused = self

    def run(self, hidden_states: torch.Tensor, states: StateCache, batch: RecurrentBatch) -> torch.Tensor:
        """Return the output for a token of each sequence, ``(sequences, 1, hidden)``; write the states after it."""
        from server.model.blocks.recurrent.triton_step import Rows as StateRows  # noqa: PLC0415  may not be installed

        projected = self.projections(hidden_states.flatten(0, 1))
        conv = states.tensor(self._conv)
        state = states.tensor(self._state) if states.has(self._state) else conv
        found = self.step(projected, StateRows(conv, state, batch.sources, batch.targets))
        output: torch.Tensor = self._output(found.unsqueeze(1))
        return output

    @abstractmethod
    def step(self, projected: torch.Tensor, rows: StateRows) -> torch.Tensor:
        """Return what the output projection is given, ``(sequences, numbers)``."""


def convolution_of(module: nn.Conv1d) -> Convolution:
    """Return a convolution of each channel as the kernels run it."""
    from server.model.blocks.recurrent.triton_step import Convolution  # noqa: PLC0415  may not be installed

    bias = None if module.bias is None else module.bias.detach()
    return Convolution(module.weight.detach().squeeze(1).contiguous(), bias)
