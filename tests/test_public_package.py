"""The package ``greenroom``, and ``python -m greenroom``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import client
import greenroom


def run_python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_package_has_the_names_of_its_client() -> None:
    assert all(getattr(greenroom, name) is getattr(client, name) for name in client.__all__)
    assert set(client.__all__) <= set(dir(greenroom))


def test_star_import_brings_the_names_of_the_client() -> None:
    names: dict[str, object] = {}
    exec("from greenroom import *", names)
    assert names.keys() - {"__builtins__"} == set(client.__all__)


def test_a_name_that_the_package_lacks_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'greenroom' has no attribute 'Nothing'"):
        _ = greenroom.Nothing


def test_a_file_that_hides_the_client_is_named(tmp_path: Path) -> None:
    hiding = tmp_path / "client.py"
    hiding.write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from greenroom import Client"
    failed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert failed.stderr.splitlines()[-1] == (
        f"ImportError: {hiding} hides the package 'client' of Greenroom: rename that file."
    )


@pytest.mark.slow
def test_package_runs_as_a_command_without_its_client() -> None:
    code = "import sys, greenroom.__main__; print('client' in sys.modules)"
    assert run_python("-c", code) == "False"
    assert run_python("-m", "greenroom", "--version").startswith("greenroom ")
