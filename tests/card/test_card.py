"""Runs what needs a GPU on the card: the tests that need one, stores on two devices, and the budget of a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.card.captured_code import CAPTURED
from tests.nightly import GPU_TESTS

ROOT = Path(__file__).parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
# Of a decode step of a Qwen3-MoE with 8 experts a token, by backend and sequences: of a layer, and beside the layers.
# Lower one with each launch that is saved.
MISSES = "graphs and a miss in each layer, 4"
MOST_LAUNCHES = {"torch, 1": (106, 24), "Triton, 4": (10, 18), "graph, 4": (0, 4), MISSES: (6, 3)}
MOST_SYNCS = {"torch, 1": (2, 1), "Triton, 4": (0, 1), "graph, 4": (0, 1), MISSES: (1, 0)}  # that one for the choices
# Of a whole decode step of a family's tiny model by Triton, one sequence: launches and synchronisations.
MOST_OF_FAMILIES = {
    "gpt_oss": (48, 1),
    "deepseek_v3": (69, 1),
    "qwen3_5_moe_text": (93, 1),
    "nemotron_h": (44, 1),
    "lfm2_moe": (55, 1),
    "gemma4_text": (95, 1),
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*arguments: str, **variables: str) -> str:
    command = [sys.executable, *arguments]
    ended = subprocess.run(command, cwd=ROOT, env=ONE_THREAD | variables, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout


@pytest.fixture(scope="module")
def stores() -> dict[str, Any]:
    seen: dict[str, Any] = json.loads(run("-m", "tests.card.stores"))
    return seen


@pytest.fixture(scope="module", params=GPU_TESTS)
def gpu_tests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run tests that need a GPU; they pass."""
    files = [str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text()]
    files.remove(__file__)
    report = tmp_path_factory.mktemp("card") / "report.json"
    options = ["-p", "tests.card.plugin", "-p", "no:cacheprovider", "-n0", "-m", request.param, "-rs"]
    output = run("-m", "pytest", *options, *files, CARD_REPORT=str(report))
    seen: dict[str, Any] = json.loads(report.read_text())
    assert "SKIPPED" not in output
    return seen


def test_the_tests_that_need_a_gpu_pass_without_a_race(gpu_tests: dict[str, Any]) -> None:
    assert gpu_tests["races"] == {}
    assert gpu_tests["launches"] > 0


def test_all_functions_that_ran_in_a_capture_are_read_for_what_it_does_not_permit(gpu_tests: dict[str, Any]) -> None:
    known = {f"{module}:{name}" for module, names in CAPTURED.items() for name in names}
    seen = set(gpu_tests["captured"])
    assert seen
    assert seen - known == set()


def test_a_store_on_the_second_device_is_right_and_leaves_the_first_alone(stores: dict[str, Any]) -> None:
    right = stores["right"]
    assert (right["wrong"], right["races"], right["devices"]) == (0, {}, [1])


def test_pins_stay_within_the_quota_and_are_given_back(stores: dict[str, Any]) -> None:
    assert 1 <= stores["right"]["pinned"] <= 3
    assert stores["right"]["left"] == 0


def test_a_refused_pin_is_no_error_of_the_next_launch(stores: dict[str, Any]) -> None:
    assert stores["launch after a refused pin"] == ""


@pytest.mark.parametrize("mistake", ["compute that does not wait for copies", "copies that do not wait for compute"])
def test_a_missing_order_is_a_race(stores: dict[str, Any], mistake: str) -> None:
    assert stores[mistake]["races"]


@pytest.mark.parametrize("step", MOST_LAUNCHES)
def test_a_step_launches_and_waits_no_more_than_it_did(steps: dict[str, Any], step: str) -> None:
    cost = steps[step]
    for name, most in (("launches", MOST_LAUNCHES), ("syncs", MOST_SYNCS)):
        of_layer, beside = most[step]
        assert cost[f"{name} of a layer"] <= of_layer
        assert cost[f"{name} beside"] <= beside


@pytest.mark.parametrize("family", MOST_OF_FAMILIES)
def test_a_step_of_a_family_launches_and_waits_no_more_than_it_did(steps: dict[str, Any], family: str) -> None:
    cost = steps[family]
    assert cost["launches"] <= MOST_OF_FAMILIES[family][0]
    assert cost["syncs"] <= MOST_OF_FAMILIES[family][1]


@pytest.fixture(scope="module")
def steps() -> dict[str, Any]:
    seen: dict[str, Any] = json.loads(run("-m", "tests.card.steps"))
    return seen
