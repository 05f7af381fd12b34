"""Triton's kernels compile for cards that are not there, and use no more of them than there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.server.kernels.triton.compiled import EVERYWHERE, GENERATIONS
from tests.server.kernels.triton.layers import KINDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[4]
# Bytes that a block may use; of 80 those of 86 and 89, for which Triton makes the same code.
SHARED = {80: 99 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
ROCM_SHARED = 64 << 10
KERNELS = {"first_few", "second_few", "first_many", "second_many"}
OTHERS = {
    "add_and_norm_rows", "attend_partition", "gate_rows", "merge_partitions", "norm_gated_rows", "norm_rows",
    "prepare_heads", "prepare_latents", "route_row", "step_convolution", "step_delta", "step_mamba2", "write_tokens",
}  # fmt: skip


@pytest.fixture(scope="module")
def made() -> dict[str, list[dict[str, Any]]]:
    """Compile in a process that does not interpret kernels; Triton keeps those that it has compiled before."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.server.kernels.triton.compiled"]
    ended = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    results: dict[str, list[dict[str, Any]]] = json.loads(ended.stdout)
    return results


@pytest.fixture(scope="module")
def compiled(made: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return made["cards"]


def test_every_kernel_compiles_for_every_generation_of_cards(compiled: list[dict[str, Any]]) -> None:
    made = {
        (each["kernel"], each["card"]) for each in compiled if each["kind"] == EVERYWHERE or each["kind"] not in KINDS
    }
    assert made >= {(name, card) for name in KERNELS | OTHERS for card in GENERATIONS}
    assert {each["card"] for each in compiled} == set(SHARED)


def test_both_products_of_experts_compile_for_every_format(compiled: list[dict[str, Any]]) -> None:
    found = {(each["kernel"].split("_")[0], each["kind"]) for each in compiled if each["kind"] in KINDS}
    assert found == {(name, kind) for name in ("first", "second") for kind in KINDS}


def test_no_kernel_spills_registers(compiled: list[dict[str, Any]]) -> None:
    assert [each for each in compiled if each["stack"] or each["local"]] == []


def test_shared_memory_is_within_the_limit_of_the_card(compiled: list[dict[str, Any]]) -> None:
    assert [each for each in compiled if each["shared"] > SHARED[each["card"]]] == []


def test_offsets_of_slots_have_64_bits(compiled: list[dict[str, Any]]) -> None:
    assert all(each["multiplies_64_bits"] for each in compiled)


def test_every_kernel_compiles_for_rocm_without_spills(made: dict[str, list[dict[str, Any]]]) -> None:
    if not made["rocm"]:
        pytest.skip("this build of Triton has no compiler for ROCm")
    assert {each["kernel"] for each in made["rocm"]} == KERNELS | OTHERS
    assert [each for each in made["rocm"] if each["shared"] > ROCM_SHARED or each["spills"] != [0, 0]] == []
