"""Pickles and code beside a model's weights are never opened or run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from server.loading.load_model import load_model
from server.model.checkpoint.locate import BUNDLED
from server.settings import ServeSettings

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED, tmp_path / "tiny"))


def test_pickles_beside_safetensors_are_not_opened(folder: Path) -> None:
    """They are pipes that nobody writes to: who opens one waits for ever."""
    for name in ("pytorch_model.bin", "model.pt", "consolidated.pth", "training_args.bin", "optimizer.bin"):
        os.mkfifo(folder / name)
    assert load_model(str(folder), ServeSettings()).name == "tiny"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_that_a_config_names_is_not_run(folder: Path, name: str) -> None:
    ran = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    path = folder / name
    auto_map = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.Evil")
    auto_map |= {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": auto_map}))
    load_model(str(folder), ServeSettings())
    assert not ran.exists()
