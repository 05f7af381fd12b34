"""Makes the checkpoints of this folder with llm-compressor, AutoRound, bitsandbytes and MLX, as their users do.

Some need other versions of transformers than Greenroom, so this runs in an environment of its own, with ``pip install
llmcompressor auto-round``, ``bitsandbytes`` or ``mlx mlx-cpu mlx-lm``, for each tool and each plain checkpoint that
``tests.checkpoints`` saved: ``python make.py llm-compressor PLAIN OUT``. ``OUT.safetensors`` gets the logits for
``PROMPT``: of the quantised model in llm-compressor and MLX, of the plain model for AutoRound, which can't run what it
made on a CPU, and of the weights as bitsandbytes dequantises them. On a CPU it does so wrongly unless blocks of 64
weights end where rows do.

Transformers 5 has the experts of a layer in one tensor, which bitsandbytes leaves alone. Those of transformers 4 were
linear layers, so here each of them is quantised as such.
"""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

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


def bitsandbytes(model: Any, out: Path, kind: str) -> Any:
    from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit  # noqa: PLC0415

    model.save_pretrained(out)
    plain = load_file(out / "model.safetensors")
    stored, weights = {}, dict(plain)
    for name, tensor in plain.items():
        module = name.removesuffix(".weight")
        if tensor.ndim < 2 or "layers." not in name or module.endswith(".gate"):
            stored[name] = tensor
            continue
        sizes = tensor.shape[1], tensor.shape[0]
        layer: Any
        if kind == "int8":
            layer = Linear8bitLt(*sizes, bias=False, has_fp16_weights=False)
            layer.weight = Int8Params(tensor.half(), requires_grad=False, has_fp16_weights=False)
        else:
            layer = Linear4bit(*sizes, bias=False)
            settings = {"quant_type": kind.removesuffix("-double"), "compress_statistics": kind.endswith("-double")}
            layer.weight = Params4bit(tensor, requires_grad=False, **settings)
        layer = layer.to("cpu")
        found = {part: value.contiguous() for part, value in layer.state_dict(prefix=module + ".").items()}
        if kind == "int8":
            weights[name] = found[name].float() * found[f"{module}.SCB"].unsqueeze(1) / 127
        else:
            weights[name] = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float().contiguous()
        stored |= found
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    expected = logits(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32))
    save_file(stored, out / "model.safetensors", {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    settings = BitsAndBytesConfig(
        load_in_8bit=kind == "int8",
        load_in_4bit=kind != "int8",
        bnb_4bit_quant_type=kind.removesuffix("-double") if kind != "int8" else "fp4",
        bnb_4bit_use_double_quant=kind.endswith("-double"),
    )
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": settings.to_dict()}))
    return expected


def mlx(model: Any, out: Path, bits: int) -> Any:
    import mlx.core as mx  # noqa: PLC0415
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model  # noqa: PLC0415

    model.save_pretrained(out)
    path = out / "config.json"
    config = json.loads(path.read_text())
    old_names = {"rope_theta": config["rope_parameters"]["rope_theta"], "num_experts": model.config.num_local_experts}
    path.write_text(json.dumps(config | old_names))
    converted, config = quantize_model(*load_model(out), group_size=32, bits=bits)
    expected = torch.tensor(converted(mx.array([PROMPT]))[0].tolist())
    save_model(out, converted)
    save_config(config, config_path=path)
    return expected


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.float().eval()(torch.tensor([PROMPT]), use_cache=False).logits[0].float().contiguous()


def main() -> None:
    tool, plain, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    out.mkdir(parents=True)
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    tools = {"llm-compressor": llm_compressor, "auto-round": auto_round}
    tools |= {f"bitsandbytes-{kind}": partial(bitsandbytes, kind=kind) for kind in ("nf4", "nf4-double", "fp4", "int8")}
    tools |= {f"mlx-{bits}": partial(mlx, bits=bits) for bits in (4, 8)}
    expected = tools[tool](model, out)
    save_file({"logits": expected}, out.with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
