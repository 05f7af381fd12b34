"""Tables of one adapter that are made once and kept as long as the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

from server.kernels.low_rank import ExpertTables
from server.kernels.native.lora import PartsTable
from server.model.lora_adapter import LoraAdapter, LoraMatrix

ExpertParts = Mapping[tuple[int, str], tuple[LoraMatrix, ...]]  # by expert and parameter
FIRST = ("gate_up_proj", "up_proj")
SECOND = ("down_proj",)


class AdapterTables:
    """The additions of one adapter to experts, by layer."""

    def __init__(self, adapter: LoraAdapter):
        self._parts: dict[int, dict[tuple[int, str], tuple[LoraMatrix, ...]]] = {}
        for target, matrices in adapter.experts.items():
            self._parts.setdefault(target.layer, {})[target.expert, target.parameter] = matrices
        self._tables: dict[int, ExpertTables] = {}

    def parts(self, layer: int) -> ExpertParts:
        """Return the additions to a layer's experts."""
        return self._parts.get(layer, {})

    def experts(self, layer: int, num_experts: int) -> ExpertTables:
        """Return the additions to a layer's experts as the native kernels read them.

        The tables end with an entry without additions, for experts that the base model does not have.
        """
        tables = self._tables.get(layer)
        if tables is None:
            first, second = (_table(self.parts(layer), names, num_experts) for names in (FIRST, SECOND))
            tables = self._tables[layer] = ExpertTables(first, second)
        return tables


_tables: WeakKeyDictionary[LoraAdapter, AdapterTables] = WeakKeyDictionary()


def tables_of(adapter: LoraAdapter) -> AdapterTables:
    """Return the tables of an adapter."""
    tables = _tables.get(adapter)
    if tables is None:
        tables = _tables[adapter] = AdapterTables(adapter)
    return tables


def _table(parts: ExpertParts, names: tuple[str, ...], num_experts: int) -> PartsTable | None:
    if not any(parameter in names for _, parameter in parts):
        return None
    return PartsTable.of(
        [(part, 0) for name in names for part in parts.get((expert, name), ())] for expert in range(num_experts + 1)
    )
