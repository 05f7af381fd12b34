"""The most tokens a second that bytes and bandwidths allow one sequence."""

from __future__ import annotations

from dataclasses import dataclass

LATER_RATIOS = (0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class Bandwidths:
    """Measured, in bytes a second."""

    compute: float  # of the memory that compute reads: the device's, or the host's on a CPU
    disk: float
    copy: float | None = None  # host to device, where compute has memory of its own


@dataclass(frozen=True)
class Traffic:
    """Bytes a token."""

    trunk: int
    experts: int


def tokens_per_second(traffic: Traffic, bandwidths: Bandwidths, hit_ratio: float, device_ratio: float = 1.0) -> float:
    """The bound when reading, copying and computing overlap perfectly, and the context is empty.

    Args:
        hit_ratio: part of the look-ups that find their expert in memory of any kind, 0 to 1.
        device_ratio: part of them that find it where compute reads, 0 to 1.
    """
    seconds = [
        (traffic.trunk + traffic.experts) / bandwidths.compute,
        (1 - hit_ratio) * traffic.experts / bandwidths.disk,
    ]
    if bandwidths.copy is not None:
        seconds.append((1 - device_ratio) * traffic.experts / bandwidths.copy)
    return 1 / max(seconds)


def hit_ratios(uniform: float) -> list[float]:
    """The ratio of uniform routing, which is the pessimist's, and those up to all experts in memory."""
    return [uniform, *(ratio for ratio in LATER_RATIOS if ratio > uniform)]
