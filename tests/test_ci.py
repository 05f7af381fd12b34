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

from tests.server.kernels.native.build import load_setup

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS: dict[str, dict[str, Any]] = {
    path.stem: yaml.safe_load(path.read_text("utf-8")) for path in (ROOT / ".github/workflows").iterdir()
}
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


def steps(workflow: str, job: str) -> list[str]:
    return [step.get("run") or step["uses"] for step in WORKFLOWS[workflow]["jobs"][job]["steps"]]


@pytest.mark.parametrize(
    ("workflow", "job", "command"), [("ci", "checks", ".ci/run"), ("nightly", "nightly", "make nightly")]
)
def test_workflow_runs_all_checks_in_the_locked_versions(workflow: str, job: str, command: str) -> None:
    assert command in steps(workflow, job)
    assert WORKFLOWS[workflow]["jobs"][job]["env"]["PIP_CONSTRAINT"].endswith("/.ci/constraints.txt")


@pytest.mark.parametrize(("workflow", "job"), [("ci", "checks"), ("nightly", "nightly")])
def test_workflow_keeps_compiled_kernels_where_the_build_looks_for_them(
    workflow: str, job: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (kept,) = [step["with"] for step in WORKFLOWS[workflow]["jobs"][job]["steps"] if "cache@" in step.get("uses", "")]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert Path(kept["path"]).expanduser() == load_setup().cache_folder(ROOT)
    kinds = {
        f"'server/**/*{file.suffix}'" for file in (ROOT / "server").rglob("*") if file.suffix in {".cpp", ".h", ".inc"}
    }
    assert [kind for kind in sorted(kinds) if kind not in kept["key"]] == []


def test_workflow_builds_wheels_on_both_architectures() -> None:
    assert "python -m cibuildwheel --output-dir wheels" in steps("ci", "wheels")
    runners = WORKFLOWS["ci"]["jobs"]["wheels"]["strategy"]["matrix"]["runner"]
    assert {runner.endswith("-arm") for runner in runners} == {False, True}


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_workflow_may_only_read_the_repository(workflow: str) -> None:
    assert WORKFLOWS[workflow]["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_actions_and_tools_have_versions(workflow: str) -> None:
    used = [step for job in WORKFLOWS[workflow]["jobs"] for step in steps(workflow, job)]
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
