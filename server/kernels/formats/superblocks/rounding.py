"""Rounds matrices to the types of ``superblocks``, each group by its extremes.

llama.cpp searches for better scales, so its files have smaller errors; this is for single experts in the format of the
others.
"""

from __future__ import annotations

import torch

from server.kernels.formats.superblocks import Superblocks
from server.kernels.native.structures.matrices import Format

LARGEST = 65504.0  # of float16
LARGEST_STEPS = {
    Format.Q2_K: 15,
    Format.Q3_K: 31,
    Format.Q4_K: 63,
    Format.Q5_K: 63,
    Format.Q6_K: 127,
    Format.IQ4_XS: 31,
}


def quantise(form: Superblocks, name: str, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tensors of a matrix ``(out, in)`` rounded to a type; its inputs are a multiple of ``form.inputs``.

    Raises:
        ValueError: a weight is too large for the type.
    """
    values = matrix.float().unflatten(1, (-1, form.inputs // form.group, form.group))  # type: ignore[no-untyped-call]
    scale, low = _extremes(form, values)  # (out, records, groups) each
    if not form.integers:
        halves = [scale.half(), low.half()] if form.has_min else [scale.half()]
        scale, low = halves[0].float(), halves[-1].float() if form.has_min else low
        integers = []
    else:
        most = LARGEST_STEPS[form.kind]
        d, steps = _steps(scale, most)
        halves, scale, mins = [d], d.float() * steps, steps
        if form.has_min:
            dmin, mins = _steps(-low, most)
            halves, low = [d, dmin], -(dmin.float() * mins)
        integers = [PACK[form.kind](steps.to(torch.int16), mins.to(torch.int16))]
    floats = torch.cat(halves, 2)
    if not floats.isfinite().all():
        raise ValueError(f"{name} holds weights that are too large for {form.kind.name}")
    codes = _codes(form, values, scale.unsqueeze(3), low.unsqueeze(3))
    return form.pack(name, codes.flatten(1).to(torch.uint8), [floats.view(torch.uint8), *integers])


def _extremes(form: Superblocks, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and least weight of each group."""
    if form.has_min:
        low, high = values.amin(-1), values.amax(-1)
        if form.integers:  # minima are subtracted, and not negative
            low, high = low.clamp(max=0), high.clamp(min=0)
        return (high - low) / ((1 << form.bits) - 1), low
    extreme = values.gather(-1, values.abs().argmax(-1, keepdim=True)).squeeze(-1)
    return extreme / (-form.centre if form.table is None else form.table[0]), torch.zeros_like(extreme)


def _steps(numbers: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A float16 number of each record, and the integers of its groups that it is multiplied by."""
    d = (numbers.abs().amax(-1, keepdim=True) / most).half()
    steps = (numbers / torch.where(d > 0, d.float(), 1.0)).round_().clamp_(-most, most)
    return d, steps


def _codes(form: Superblocks, values: torch.Tensor, scale: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """The codes of the numbers that come nearest."""
    wanted = torch.where(scale != 0, (values - low) / torch.where(scale != 0, scale, 1.0), 0.0)
    if form.table is None:
        return (wanted.round_() + form.centre).clamp_(0, (1 << form.bits) - 1)
    table = torch.tensor(form.table, dtype=torch.float32)
    return torch.bucketize(wanted, (table[1:] + table[:-1]) / 2)


def _q2_bytes(steps: torch.Tensor, mins: torch.Tensor) -> torch.Tensor:
    return (steps | mins << 4).to(torch.uint8)


def _q3_bytes(steps: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    positive = steps + 32
    low, high = positive & 15, positive >> 4
    packed = [high[..., 4 * k : 4 * k + 4] << 2 * k for k in range(4)]
    return torch.cat((low[..., :8] | low[..., 8:] << 4, sum(packed)), -1).to(torch.uint8)  # type: ignore[arg-type]


def _k_bytes(steps: torch.Tensor, mins: torch.Tensor) -> torch.Tensor:
    upper = [part[..., 4:] for part in (steps, mins)]
    first, second = (part[..., :4] | (high >> 4) << 6 for part, high in zip((steps, mins), upper, strict=True))
    return torch.cat((first, second, upper[0] & 15 | (upper[1] & 15) << 4), -1).to(torch.uint8)


def _int8_bytes(steps: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return steps.to(torch.int8).view(torch.uint8)


PACK = {
    Format.Q2_K: _q2_bytes,
    Format.Q3_K: _q3_bytes,
    Format.Q4_K: _k_bytes,
    Format.Q5_K: _k_bytes,
    Format.Q6_K: _int8_bytes,
    Format.IQ4_XS: _int8_bytes,
}
