"""Random checkpoints of the families that people run: ``python -m benchmarks.family_checkpoints FAMILY FOLDER``.

Each has the proportions of a published model at 1 to 2 GB in bfloat16, and the hub's layout. Weights are initialised as
before training, so routing is nearly uniform. All share one artificial tokenizer, in which nearly every token is
complete text, so that streams have a chunk for each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from benchmarks.families import COMMON, FAMILIES, VOCABULARY, Family

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MXFP4_GROUP = 32
MXFP4_SCALES = (118, 122)  # exponents plus 127: values of the size that bfloat16 weights have


def family_config(family: Family) -> PreTrainedConfig:
    """Return the config of a family."""
    config = CONFIG_MAPPING[family.model_type](**COMMON | dict(family.fields), dtype="bfloat16")
    config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]  # noqa: SLF001
    return config


def published_config(family: Family, config: PreTrainedConfig) -> dict[str, Any]:
    """Return a config as the hub has it: transformers saves some fields under newer names, which others don't read."""
    return json.loads(config.to_json_string(use_diff=False)) | COMMON | dict(family.fields)


def write_family_checkpoint(family: Family, folder: Path) -> None:
    """Write a family's checkpoint, with its config last; a folder that has a config is left unchanged."""
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = family_config(family)
    make_tokenizer().save_pretrained(folder)
    torch.manual_seed(0)
    if family.is_mxfp4:
        config.quantization_config = {"quant_method": "mxfp4", "modules_to_not_convert": []}
        save_file(_mxfp4_tensors(config), folder / "model.safetensors", {"format": "pt"})
    else:
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        (folder / "config.json").unlink()  # written anew below
    generation = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "config.json").write_text(json.dumps(published_config(family, config), indent=2))


def make_tokenizer(vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of pairs and triples of printable characters."""
    characters = string.ascii_letters + string.digits + string.punctuation
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = list(itertools.product(characters, characters))
    triples = itertools.product(("".join(pair) for pair in pairs), characters)
    num_merges = vocabulary - len(SPECIAL_TOKENS) - len(alphabet)
    merges = list(itertools.islice(itertools.chain(pairs, triples), num_merges))
    tokens = [*SPECIAL_TOKENS, *alphabet, *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    first = SPECIAL_TOKENS[0]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=first, eos_token=first, pad_token=first, chat_template=CHAT_TEMPLATE
    )


def _mxfp4_tensors(config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """Return gpt-oss's tensors as published: matrices of experts in blocks of 4-bit codes, all others in bfloat16."""
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).state_dict()
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith("_proj") and shape.ndim == 3:  # (experts, inputs, outputs)
            experts, inputs, outputs = shape.shape
            rows = (experts, outputs, inputs // MXFP4_GROUP)
            tensors[f"{name}_blocks"] = torch.randint(0, 256, (*rows, MXFP4_GROUP // 2), dtype=torch.uint8)
            tensors[f"{name}_scales"] = torch.randint(*MXFP4_SCALES, rows, dtype=torch.uint8)
        elif name.endswith("norm.weight"):
            tensors[name] = torch.ones(shape.shape, dtype=torch.bfloat16)
        else:
            tensors[name] = torch.empty(shape.shape, dtype=torch.bfloat16).normal_(std=config.initializer_range)
    return tensors


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("folder", type=Path, help="folder to write")
    options = parser.parse_args()
    write_family_checkpoint(FAMILIES[options.family], options.folder)


if __name__ == "__main__":
    main()
