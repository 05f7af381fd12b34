"""Sample completions by domain, and whether chat turns end by themselves."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .corpus import Domain

SAMPLES = 2  # of each domain
TURNS = 24  # of each domain written as chat
OPENING_TOKENS = 24
TEXT_TOKENS = 200
TURN_TOKENS = 400
SEED = 1


@dataclass(frozen=True)
class Sample:
    """A prompt and what the model wrote after it."""

    prompt: str
    completion: str
    ended: bool  # by an end token of the model's own


def is_chat(domain: Domain) -> bool:
    return all(text.startswith("<|im_start|>") for text in domain.held_out_texts)


def first_turn(text: str) -> list[dict[str, str]]:
    """The messages of a ChatML document that come before the assistant's first."""
    messages = []
    for role, content in re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", text, re.DOTALL):
        if role == "assistant":
            break
        messages.append({"role": role, "content": content})
    return messages


def prompts_of(domain: Domain, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Prompts from the first held-out documents: first turns of chats that a user begins, openings of texts."""
    if is_chat(domain):
        turns = [turn for turn in map(first_turn, domain.held_out_texts) if turn]
        return [
            tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False) for turn in turns[:TURNS]
        ]
    texts = domain.held_out[:SAMPLES]
    return [text[: min(OPENING_TOKENS, len(text) // 2)].tolist() for text in texts]


@torch.no_grad()
def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], limit: int
) -> list[Sample]:
    """One completion of each prompt, drawn as the model's generation config says, from a fixed seed."""
    config = model.generation_config
    width = max(map(len, prompts))
    padded = [[config.pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    torch.manual_seed(SEED)
    output = model.generate(
        input_ids=torch.tensor(padded), attention_mask=torch.tensor(mask), max_new_tokens=limit, top_k=0
    )
    samples = []
    for prompt, row in zip(prompts, output[:, width:].tolist(), strict=True):
        length = next((index for index, token in enumerate(row) if token in config.eos_token_id), len(row))
        samples.append(Sample(tokenizer.decode(prompt), tokenizer.decode(row[:length]), ended=length < len(row)))
    return samples


def sample_domain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, domain: Domain) -> list[Sample]:
    """``TURNS`` first turns of a domain written as chat, or ``SAMPLES`` continued openings of another."""
    limit = TURN_TOKENS if is_chat(domain) else TEXT_TOKENS
    return complete(model, tokenizer, prompts_of(domain, tokenizer), limit)
