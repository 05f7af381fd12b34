"""StrategySelection: selects the way in which modules run the experts of a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch

from server.device import is_gpu
from server.kernels.backend import TableBackend
from server.kernels.expert import ExpertsModule
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.host_compute import MissPlacement
from server.model.experts.step_experts import StepExperts
from server.model.experts.strategies.choice_reader import ChoiceReader
from server.model.experts.strategies.hits_first import HitsFirst
from server.model.experts.strategies.leased import LeasedExperts
from server.model.experts.strategies.slot_tables import SlotTables
from server.model.experts.strategies.strategy import ExpertStrategy
from server.model.experts.strategies.waitless import WaitlessExperts


class StrategySelection:
    """Selects a strategy for each step.

    - ``WaitlessExperts`` where all experts are on the device, and its kernels find them by a table of slots.
    - ``HitsFirst`` where some may be missing from a GPU with such kernels.
    - ``LeasedExperts`` for other models and devices, and in steps with variants or adapters.

    Args:
        layers: of the model; empty if no module runs experts.
    """

    def __init__(self, layers: Mapping[ExpertsModule, ExpertLayer], device: torch.device):
        by_table = bool(layers) and all(isinstance(layer.backend, TableBackend) for layer in layers.values())
        self.tables = SlotTables(list(layers.values()), device) if by_table else None
        self._reader = ChoiceReader(device) if by_table and is_gpu(device) else None
        self.misses = MissPlacement("copy")  # says who computes the experts that a GPU misses

    @property
    def has_hits_first(self) -> bool:
        """True if steps may run as ``HitsFirst``."""
        return self._reader is not None

    @contextmanager
    def select(self, experts: StepExperts) -> Iterator[ExpertStrategy]:
        """Select the strategy of a step, which runs in this context."""
        if self.tables is None or experts.variants is not None or experts.adapters is not None:
            yield LeasedExperts(experts)
            return
        lease = experts.hold_all()
        if lease is not None:
            with experts.residents(lease) as residents:
                waitless = WaitlessExperts(experts, residents, self.tables)
                yield waitless
                waitless.finish()
        elif self._reader is None:
            yield LeasedExperts(experts)
        else:
            is_decode = experts.phase == "decode"
            with self.misses.measured(experts.record) if is_decode else nullcontext():
                yield HitsFirst(experts, self.tables, self._reader, self.misses.now if is_decode else None)
