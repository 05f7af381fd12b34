"""The example of docs/expert_store.md runs unchanged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.checkpoints import make_checkpoint

PAGE = Path(__file__).resolve().parents[2] / "docs" / "expert_store.md"


def test_the_page_pages_a_plain_transformers_model(tmp_path: Path, capsys: Any) -> None:
    make_checkpoint("qwen3_moe", tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = torch.tensor([[1, 2, 3]])
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {"folder": tmp_path, "budget": 5 * 12288}
    exec(compile(program, str(PAGE), "exec"), names)
    store = names["store"]
    assert str(stock.generate(prompt, max_new_tokens=5)) in capsys.readouterr().out
    with torch.inference_mode():
        difference = names["model"](prompt).logits - stock(prompt).logits
    assert difference.abs().max() < 1e-4
    assert store.tiers()["host"].num_slots < sum(store.catalog.layouts.values())
    assert store.statistics().lookups["disk", "decode"] > 0
    store.close()
