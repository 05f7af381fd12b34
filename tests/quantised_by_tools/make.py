"""Makes the checkpoints of this folder with llm-compressor and AutoRound, as their users do.

Both need other versions of transformers than Greenroom, so this runs in an environment of its own, with
``pip install llmcompressor auto-round``, for each tool and each plain checkpoint that ``tests.checkpoints`` saved:
``python make.py llm-compressor PLAIN OUT``. ``OUT.safetensors`` gets the logits for ``PROMPT``: of the quantised
model in llm-compressor, and of the plain model for AutoRound, which can't run what it made on a CPU.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

PROMPT = [5, 17, 99, 3, 42, 8, 64]
GROUP = 32  # inputs
KEPT = ["lm_head", "re:.*gate$", "re:.*router.*"]


def llm_compressor(model: Any, out: Path) -> Any:
    from llmcompressor import oneshot  # noqa: PLC0415  (an environment has one of the tools)
    from llmcompressor.modifiers.quantization import QuantizationModifier  # noqa: PLC0415

    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    oneshot(model=model, recipe=QuantizationModifier(config_groups=groups, ignore=KEPT))
    expected = logits(model)
    model.save_pretrained(out, save_compressed=True)
    return expected


def auto_round(model: Any, out: Path) -> Any:
    from auto_round import AutoRound  # noqa: PLC0415

    expected = logits(model)

    class NoTokenizer:
        name_or_path = ""

        def save_pretrained(self, *_: Any, **__: Any) -> None:
            """Save nothing: round to nearest needs no texts."""

    tool = AutoRound(
        model,
        tokenizer=NoTokenizer(),
        scheme="W4A16",
        iters=0,
        disable_opt_rtn=True,
        group_size=GROUP,
        device_map="cpu",
    )
    _, folders = tool.quantize_and_save(str(out / "made"), format="auto_round")
    for path in Path(folders[0] if isinstance(folders, list) else folders).iterdir():
        shutil.move(path, out / path.name)
    shutil.rmtree(out / "made")
    return expected


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.float().eval()(torch.tensor([PROMPT]), use_cache=False).logits[0].float().contiguous()


def main() -> None:
    tool, plain, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    out.mkdir(parents=True)
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    expected = {"llm-compressor": llm_compressor, "auto-round": auto_round}[tool](model, out)
    save_file({"logits": expected}, out.with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
