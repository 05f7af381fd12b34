"""Tables of slots on a device have what the host believes that they have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from server.model.experts.strategies import slot_tables
from server.model.experts.strategies.slot_tables import SlotTables


def test_a_table_that_could_not_be_copied_is_copied_by_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    layers: Any = [SimpleNamespace(number=0, keys=range(3))]
    tables, slots = SlotTables(layers, torch.device("cpu")), np.array([2, -1, 0], np.int32)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as failing:
        failing.setattr(slot_tables, "upload_into", fail)
        with pytest.raises(torch.OutOfMemoryError):
            tables.update_layer(0, slots)
    tables.update_layer(0, slots)
    assert tables.of(0).tolist() == [2, -1, 0]
