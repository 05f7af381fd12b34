"""Import of torch and transformers without unneeded parts, in new processes."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.lifecycle import torch_setup

SERVE = (
    "from server.lifecycle.torch_setup import set_up_torch; set_up_torch({model!r}); "
    "import sys, server.lifecycle.serving; "
)
NAMES = (
    "torch._dynamo",
    "torch._meta_registrations",
    "sympy",
    "torch.distributed.tensor",
    "triton",
    "boto3",
    "torchvision",
)


def run(code: str, model: str | None = None, **environment: str) -> str:
    """Return the standard output of code in a new process that has done the imports of `greenroom serve MODEL`."""
    command = [sys.executable, "-c", SERVE.format(model=model) + code]
    return subprocess.run(
        command, env={**os.environ, **environment}, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """Return what a server's process has after its imports, and then with PyTorch's compiler."""
    code = (
        f"import json, os, torch; names = [name for name in {NAMES} if sys.modules.get(name)]\n"
        "from transformers.utils.import_utils import create_import_structure_from_path as walk\n"
        "cache = walk.cache_info().maxsize, walk.cache_info().currsize < 100\n"
        "distributed = torch.distributed.is_available() == hasattr(torch._C, '_c10d_init')\n"
        "compiled = torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item()\n"
        "from torch._subclasses import FakeTensorMode\n"
        "convolve = torch.nn.functional.conv1d\n"
        "with FakeTensorMode(): shape = list(convolve(torch.ones(1, 2, 5), torch.ones(3, 2, 2)).shape)\n"
        "print(json.dumps([names, cache, distributed, os.environ['LRU_CACHE_CAPACITY'], compiled, shape]))"
    )
    parts = json.loads(run(code, LRU_CACHE_CAPACITY="512"))
    return dict(zip(("names", "cache", "distributed", "capacity", "compiled", "shape"), parts, strict=True))


@pytest.mark.slow
def test_a_server_imports_neither_compiler_nor_meta_kernels_nor_distributed_tensors_nor_torchvision(
    seen: dict[str, Any],
) -> None:
    assert seen["names"] == []


@pytest.mark.slow
def test_the_files_of_models_are_read_once(seen: dict[str, Any]) -> None:
    """Their cache has places for all, and is empty again."""
    assert seen["cache"] == [None, True]


@pytest.mark.slow
def test_distributed_is_available_again_afterwards(seen: dict[str, Any]) -> None:
    assert seen["distributed"] is True


@pytest.mark.slow
def test_environment_variables_of_the_user_are_kept(seen: dict[str, Any]) -> None:
    assert seen["capacity"] == "512"


@pytest.mark.slow
def test_the_compiler_can_be_imported_later(seen: dict[str, Any]) -> None:
    assert seen["compiled"] == 2.0


def test_no_garbage_is_collected_during_imports_and_what_they_made_is_never_visited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch_setup, "NEEDED", ("no.such.module",))
    try:
        with torch_setup._without_collection():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > len(sys.modules)
    finally:
        gc.unfreeze()


def test_a_collector_that_was_off_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_setup, "NEEDED", ("no.such.module",))
    gc.disable()
    try:
        with torch_setup._without_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


@pytest.mark.slow
def test_inspecting_imports_neither_sympy_nor_meta_kernels() -> None:
    """PyTorch imports them to check products on the meta device."""
    code = (
        "from server.inspection.inspect_model import inspect_model; from server.settings import load_settings; "
        "inspect_model(None, load_settings({}, {}, None)); "
        f"print([name for name in {NAMES} if sys.modules.get(name)])"
    )
    assert run(code) == "[]"


@pytest.mark.slow
def test_a_check_of_tensors_that_holds_imports_no_sympy() -> None:
    code = "import torch; torch._check_tensor_all(torch.tensor([True])); print(bool(sys.modules.get('sympy')))"
    assert run(code) == "False"


@pytest.mark.slow
def test_a_check_of_tensors_that_fails_raises_the_error() -> None:
    code = "import torch, pytest; pytest.raises(RuntimeError, torch._check_tensor_all, torch.tensor([False]))"
    run(code)  # which fails if no error is raised


@pytest.mark.slow
def test_the_compiler_gets_the_kernels_for_the_meta_device(seen: dict[str, Any]) -> None:
    assert seen["shape"] == [1, 3, 4]


@pytest.mark.slow
def test_a_model_that_takes_images_gets_torchvision_without_the_compiler(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {}}))
    assert run(f"print([name for name in {NAMES} if sys.modules.get(name)])", str(tmp_path)) == "['torchvision']"


@pytest.mark.slow
def test_a_torchvision_that_needs_more_of_the_compiler_gets_it() -> None:
    code = (
        "import sys; from server.lifecycle import lighter_imports; lighter_imports.import_torch()\n"
        "with lighter_imports.without_compiler(): from torch._dynamo.utils import is_compile_supported, counters\n"
        "print(type(counters).__name__, sys.modules['torch._dynamo'].__file__ is not None)"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "defaultdict True"


@pytest.mark.slow
def test_a_transformers_that_needs_more_of_the_compiler_gets_it() -> None:
    code = (
        "import sys; from server.lifecycle import lighter_imports, torch_setup; lighter_imports.MARKS = (); "
        "torch_setup.set_up_torch(None); "
        "import server.lifecycle.serving; print('torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "True"
