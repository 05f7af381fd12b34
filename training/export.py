"""Writes a run's model in the hub's layout: config, tokenizer, generation config, safetensors.

    python -m training.export RUN OUT --tokenizer tokenizer.json

RUN may be finished or still training; its last checkpoint is used.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from training.architecture import Shape, build_model
from training.corpus import END_OF_TEXT
from training.errors import DemoError, RunError

# Without tools, the template adds no system prompt, so a rendered chat has the same tokens as in the corpus. With tools
# it is Qwen's; ``training.tool_chats`` renders the chats with tools of the training text by it.
DOCUMENT_TEMPLATE = (
    "{% if tools %}"
    "{{ '<|im_start|>system\\n' }}"
    "{% if messages[0]['role'] == 'system' %}{{ (messages[0]['content'] or '') + '\\n\\n' }}{% endif %}"
    "{{ '# Tools\\n\\n<tools>' }}"
    "{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}"
    "{{ '\\n</tools>\\n\\nTo call a tool, write:\\n<tool_call>\\n' }}"
    '{{ \'{"name": <name>, "arguments": <arguments>}\\n</tool_call><|im_end|>\\n\' }}'
    "{% endif %}"
    "{% for message in messages %}"
    "{% if not (tools and loop.first and message['role'] == 'system') %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '\\n' if message['content'] or not loop.first }}"
    "{{ '<tool_call>\\n{\"name\": ' + (call['function']['name'] | tojson) + ', \"arguments\": ' }}"
    "{{ (call['function']['arguments'] | tojson) + '}\\n</tool_call>' }}"
    "{% endfor %}"
    "{{ '<|im_end|>' + '\\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# In training, each document follows the end of another one. Without that token in front, the model takes a question for
# the rest of a chat, and may call tools that it was not given.
CHAT_TEMPLATE = f"{{{{ '{END_OF_TEXT}' }}}}{DOCUMENT_TEMPLATE}"


def load_run(run: Path, *, shape: Shape | None = None) -> PreTrainedModel:
    """Load a run's last checkpoint, MoE or dense, in float32 with weights rounded to bfloat16.

    Only weights are rounded: ``model.to(bfloat16)`` would also round the rotary frequencies.
    """
    checkpoint = run / "state.pt"
    if not checkpoint.is_file():
        raise RunError(f"{run} has no state.pt; train first")
    weights = torch.load(checkpoint, weights_only=True)["model"]
    dense = not any(".experts." in name for name in weights)
    model = build_model(len(weights["model.embed_tokens.weight"]), dense=dense, shape=shape)
    model.load_state_dict({name: weight.bfloat16() for name, weight in weights.items()})
    return model.eval()


def export(run: Path, out: Path, tokenizer: Path, *, shape: Shape | None = None) -> None:
    """Write a folder that ``from_pretrained`` can read."""
    if not tokenizer.is_file():
        raise RunError(f"tokenizer {tokenizer} does not exist")
    model = load_run(run, shape=shape)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.9, bos_token_id=0, eos_token_id=[0, 2], pad_token_id=0
    )
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # transformers makes it readable by the owner only
    _use_hub_names(out / "config.json")
    shutil.copyfile(tokenizer, out / "tokenizer.json")
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": model.config.max_position_embeddings,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def _use_hub_names(config: Path) -> None:
    """Rename the number of experts to the hub's name for Qwen3-MoE; transformers 5 writes another name."""
    values = json.loads(config.read_text())
    values["num_experts"] = values.pop("num_local_experts")
    _write_json(config, dict(sorted(values.items())))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    args = parser.parse_args()
    try:
        export(args.run, args.out, args.tokenizer)
    except DemoError as error:
        sys.exit(f"error: {error}")
    num_bytes = sum(path.stat().st_size for path in args.out.iterdir())
    print(f"{args.out}: {num_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
