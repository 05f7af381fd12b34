"""Functions that run while CUDA graphs are captured do nothing that a capture does not permit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.card.captured_code import ALLOWED, CAPTURED, find_breaches

ROOT = Path(__file__).parents[2]
FUNCTION = """
class Layer:
    def __init__(self, x: torch.Tensor):
        self.x, self.kept = x, torch.ones(1)

    def run(self, x: torch.Tensor, y: torch.Tensor | None, size: int) -> torch.Tensor:
        z = x * 2
        {}
"""
BREACHES = {
    "z.sum().item()": "reads the device by item",
    "x.tolist()": "reads the device by tolist",
    "x.cpu()": "reads the device by cpu",
    "x.to('cpu')": "reads the device by to",
    "x[x > 0].nonzero()": "reads the device by nonzero",
    "return int(z[0])": "reads the device by int",
    "if z.any(): return z": "decides by the tensor z.any()",
    "return x if self.x > 0 else z": "decides by the tensor self.x > 0",
    "return size and self.kept": "decides by the tensor self.kept",
    "return [row for row in z]": "iterates over the tensor z",
    "log.debug(f'{z}')": "prints the tensor z",
    "torch.cuda.synchronize()": "waits by synchronize",
    "return torch.zeros(size, device=x.device)": "allocates by zeros",
    "return x.new_empty(size)": "allocates by new_empty",
    "return torch.tensor([size])": "copies by tensor",
    "upload_into(numbers, x)": "copies by upload_into",
    "return x.pin_memory()": "copies by pin_memory",
}
PERMITTED = (
    "return x.view(-1) if size else z",
    "return x if y is None else x + y",
    "return int(x.shape[0]) + len(x) + x.numel()",
    "return torch.where(x > 0, x, z)",
    "return not x.is_contiguous() or x.stride(-1) == 1",
)


@pytest.mark.parametrize("line", BREACHES)
def test_what_a_capture_does_not_permit_is_found(line: str) -> None:
    assert BREACHES[line] in find_breaches(FUNCTION.format(line), ["Layer.run"])["Layer.run"]


@pytest.mark.parametrize("line", PERMITTED)
def test_what_a_capture_permits_is_no_breach(line: str) -> None:
    assert find_breaches(FUNCTION.format(line), ["Layer.run"]) == {"Layer.run": []}


@pytest.mark.parametrize("module", CAPTURED)
def test_captured_functions_keep_to_what_is_permitted(module: str) -> None:
    found = find_breaches((ROOT / module).read_text(), CAPTURED[module])
    breaches = {f"{module}:{name}": each for name, each in found.items() if each}
    assert breaches == {name: sorted(each) for name, each in ALLOWED.items() if name.startswith(f"{module}:")}
