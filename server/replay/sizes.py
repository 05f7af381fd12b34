"""Sizes of memory for experts, as given to `--sizes`."""

from __future__ import annotations

from dataclasses import dataclass

from server.setting_values import parse_budget


class UsageError(Exception):
    """An invalid argument; the message names it."""


@dataclass(frozen=True)
class Size:
    """Memory for experts, in bytes or as a share of all experts."""

    text: str
    nbytes: int | None
    share: float | None  # 0 to 1

    def num_slots(self, num_experts: int, total_bytes: int) -> int:
        """Return the number of slots of a model whose experts take ``total_bytes`` together."""
        if self.nbytes is not None:
            return min(num_experts, num_experts * self.nbytes // total_bytes)
        assert self.share is not None
        return int(self.share * num_experts + 1e-9)  # 29 % of 100 are 28.999... in binary


def parse_sizes(text: str) -> list[Size]:
    """Parse sizes that are separated by commas.

    Raises:
        UsageError: one of them is not a size.
    """
    sizes = []
    for part in dict.fromkeys(text.split(",")):
        try:
            budget = parse_budget(part)
        except ValueError as error:
            raise _not_a_size(part) from error
        if budget.nbytes is None and budget.share is None:
            raise _not_a_size(part)
        sizes.append(Size(part, budget.nbytes, budget.share))
    return sizes


def _not_a_size(text: str) -> UsageError:
    return UsageError(f"--sizes: {text!r} is not a size; write it as 6GiB, or as a share up to 100%")
