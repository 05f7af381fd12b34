"""Linear layers of the trunk that run on the native kernels, or on several threads where they are large."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import nn

from server.kernels.batch_invariant import is_batch_invariant
from server.kernels.compute_pool import ComputePool, work_bytes
from server.kernels.linear import is_few, linear
from server.kernels.native.linear import native_linear, plain_matrix
from server.kernels.native.slot_format import PLAIN
from server.model.quantised.linear import QuantisedMatrix

MOST_ROWS = 64  # beyond this, copying the result into the order that modules expect costs the gain
LEAST_WEIGHTS = 1 << 18  # least weights of a layer that are worth another call
LEAST_SHARED_BYTES = 6 << 20  # bytes of work (``work_bytes``) below which threads cost more than they bring


class FastLinear(nn.Linear):
    """A linear layer on the native kernels; without them, fast for few rows and on several threads for much work."""

    pool: ComputePool

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's name
        rows = input.flatten(0, -2)
        count, weight = rows.shape[0], self.weight
        kernels = self.pool.kernels
        if kernels is not None and input.dtype in PLAIN and (matrix := plain_matrix(weight)) is not None:
            return native_linear(kernels, input, matrix, self.bias)
        if not rows.is_cpu or is_batch_invariant():
            return super().forward(input)
        work = work_bytes(weight.nbytes, count)
        if self.pool.num_threads > 1 and work >= LEAST_SHARED_BYTES and count:
            output = self._run_threaded(rows)
        elif is_few(rows, MOST_ROWS):
            output = linear(rows, weight, self.bias).contiguous()
        else:
            return super().forward(input)
        return output.view(*input.shape[:-1], -1)

    def _run_threaded(self, rows: torch.Tensor) -> torch.Tensor:
        """Compute parts of the rows, if they are many, or else of the outputs, each on another thread."""
        weight, bias, threads = self.weight, self.bias, self.pool.num_threads
        output = rows.new_empty((rows.shape[0], weight.shape[0]))

        def compute(of_rows: slice, of_outputs: slice) -> None:
            part = None if bias is None else bias[of_outputs]
            output[of_rows, of_outputs] = linear(rows[of_rows], weight[of_outputs], part)

        is_by_rows = rows.shape[0] > MOST_ROWS
        size = -(-(rows.shape[0] if is_by_rows else weight.shape[0]) // threads)
        for number in range(threads):
            part, every = slice(number * size, (number + 1) * size), slice(None)
            self.pool.start(partial(compute, part, every) if is_by_rows else partial(compute, every, part))
        self.pool.finish()
        return output


def speed_up_linears(model: nn.Module, pool: ComputePool) -> None:
    """Make every plain linear layer of a model a ``FastLinear``, except small ones, where the overhead costs more."""
    for module in model.modules():
        if isinstance(module, QuantisedMatrix):
            module.kernels = pool.kernels
        if type(module) is nn.Linear and module.weight.numel() >= LEAST_WEIGHTS:
            module.__class__ = FastLinear
            cast("FastLinear", module).pool = pool
