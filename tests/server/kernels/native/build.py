"""The build of the native kernels, as in setup.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[4]
DRIVER = Path(__file__).with_name("driver")  # folder of its sources


def load_setup() -> ModuleType:
    """Import setup.py as a module, without running setup."""
    spec = importlib.util.spec_from_file_location("greenroom_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
