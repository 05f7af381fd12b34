"""Names of parameters whose values a layer passes on."""

from __future__ import annotations

import torch
from torch import nn

from server.model.blocks.errors import UnsupportedLayerError


def name_of(value: torch.Tensor | None, module: nn.Module) -> str | None:
    """Return the name of the parameter that has some numbers, such as those of a view of it; None for no numbers.

    Args:
        value: the numbers.
        module: that has the parameter.

    Raises:
        UnsupportedLayerError: it has none.
    """
    if value is None:
        return None
    for name, each in module.named_parameters():
        if each.numel() == value.numel() and torch.equal(each.detach().flatten(), value.flatten().to(each.dtype)):
            return name
    raise UnsupportedLayerError("its sinks are no parameters of its attention")
