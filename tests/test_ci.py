"""The workflow: steps and scripts that exist, and versions that the packages admit."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LOCK = (ROOT / ".ci/constraints.txt").read_text("utf-8")
PINS = {each.name: each for each in map(Requirement, re.findall(r"^(?!#)\S.*$", LOCK, re.MULTILINE))}


def dependencies(extra: str = "") -> list[Requirement]:
    """Return the dependencies, with those of an extra and of the extras that it names."""
    project = PYPROJECT["project"]
    named = [Requirement(text) for text in project["optional-dependencies"].get(extra, [])]
    own = [each for each in named if each.name != project["name"]]
    others = [
        further
        for each in named
        if each.name == project["name"]
        for name in sorted(each.extras)
        for further in dependencies(name)
    ]
    return [*map(Requirement, project["dependencies"]), *own, *others]


def steps(job: str) -> list[str]:
    return [step.get("run") or step["uses"] for step in WORKFLOW["jobs"][job]["steps"]]


def test_workflow_runs_all_checks_in_the_locked_versions() -> None:
    assert ".ci/run" in steps("checks")
    assert WORKFLOW["jobs"]["checks"]["env"]["PIP_CONSTRAINT"].endswith("/.ci/constraints.txt")


def test_workflow_builds_wheels_on_both_architectures() -> None:
    assert "python -m cibuildwheel --output-dir wheels" in steps("wheels")
    runners = WORKFLOW["jobs"]["wheels"]["strategy"]["matrix"]["runner"]
    assert {runner.endswith("-arm") for runner in runners} == {False, True}


def test_workflow_may_only_read_the_repository() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_actions_and_tools_have_versions() -> None:
    used = [step for job in WORKFLOW["jobs"] for step in steps(job)]
    actions = [step for step in used if re.match(r"[\w-]+/", step)]
    assert [each for each in actions if not re.search(r"@v\d+$", each)] == []
    installed = [name for step in used for name in re.findall(r"pip install (\S+)", step)]
    assert [name for name in installed if "==" not in name] == []


def test_each_wheel_serves_the_bundled_model_with_native_kernels() -> None:
    script, pattern = PYPROJECT["tool"]["cibuildwheel"]["test-command"].split(" ", 1)
    assert os.access(ROOT / script.removeprefix("{project}/"), os.X_OK)
    assert re.search(pattern.strip("'"), "loading m on cpu, kernels: portable")
    assert not re.search(pattern.strip("'"), "loading m on cpu, kernels: none, torch computes")


@pytest.mark.parametrize("needed", dependencies("dev"), ids=str)
def test_each_dependency_is_locked_in_a_version_that_is_admitted(needed: Requirement) -> None:
    name = canonicalize_name(needed.name)
    assert name in PINS, "run make lock"
    (pin,) = PINS[name].specifier
    assert pin.operator == "=="
    assert pin.version in needed.specifier, "run make lock"


def test_lock_leaves_index_and_build_of_torch_open() -> None:
    """A pin without a local version also admits ``+cpu``."""
    assert [line for line in LOCK.splitlines() if re.search(r"://|^-|\+", line)] == []
