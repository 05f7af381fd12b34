"""A release: what the wheel has, and the version in the files that name it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from setuptools import find_packages

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
VERSION: str = PYPROJECT["project"]["version"]
SETUPTOOLS: dict[str, Any] = PYPROJECT["tool"]["setuptools"]
PACKAGES = find_packages(str(ROOT), include=SETUPTOOLS["packages"]["find"]["include"])
# Reports on the bundled model and its recorded routing are for readers of the repository.
NOT_INSTALLED = r"server/demo/(.*\.md|.*results\.json|experts\.png|traces/.*)"


def installed_data() -> set[Path]:
    patterns: dict[str, list[str]] = SETUPTOOLS["package-data"]
    return {file for package, globs in patterns.items() for glob in globs for file in (ROOT / package).glob(glob)}


def test_wheel_has_the_packages_that_run() -> None:
    assert {name for name in PACKAGES if "." not in name} == {"client", "expert_store", "greenroom", "server"}


@pytest.mark.parametrize("package", ["client", "expert_store", "greenroom", "server"])
def test_wheel_tells_type_checkers_of_annotations(package: str) -> None:
    assert ROOT / package / "py.typed" in installed_data()


def test_wheel_has_the_bundled_model_without_its_reports() -> None:
    listed = subprocess.run(["git", "ls-files", "server/demo"], cwd=ROOT, check=True, capture_output=True, text=True)
    wanted = {ROOT / name for name in listed.stdout.splitlines() if not re.fullmatch(NOT_INSTALLED, name)}
    assert wanted
    assert {file for file in installed_data() if (ROOT / "server/demo") in file.parents and file.is_file()} == wanted


def test_changelog_begins_with_this_version() -> None:
    releases = re.findall(r"^## (\S+) \(\d{4}-\d\d-\d\d\)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert releases[0] == VERSION
    assert releases == sorted(releases, key=lambda name: [int(part) for part in name.split(".")], reverse=True)


@pytest.mark.parametrize(
    ("file", "tag"),
    [("base/statefulset.yaml", r"image: greenroom:(\S+)"), ("gpu/kustomization.yaml", r"newTag: (\S+)-cuda")],
)
def test_kubernetes_runs_the_image_of_this_version(file: str, tag: str) -> None:
    assert re.findall(tag, (ROOT / "docker/kubernetes" / file).read_text("utf-8")) == [VERSION]
