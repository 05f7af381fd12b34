"""Samples completions of each domain, and finds chat turns that end by themselves."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.corpus import Domain

SAMPLES = 2  # samples per domain
TURNS = 24  # chat turns per chat domain
OPENING_TOKENS = 24
TEXT_TOKENS = 200
TURN_TOKENS = 400
SEED = 1


@dataclass(frozen=True)
class Sample:
    """A prompt and its completion."""

    prompt: str
    completion: str
    ended: bool  # the model chose an end token


def is_chat(domain: Domain) -> bool:
    return all(text.startswith("<|im_start|>") for text in domain.held_out_texts)


def first_turn(text: str) -> list[dict[str, str]]:
    """Return the messages of a ChatML document before the assistant's first."""
    messages = []
    for role, content in re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", text, re.DOTALL):
        if role == "assistant":
            break
        messages.append({"role": role, "content": content})
    return messages


def prompts_of(domain: Domain, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return prompts from the first held-out documents: the first user turn of a chat, or the opening of a text."""
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
    """Return one completion per prompt, sampled with the model's generation config and a fixed seed."""
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
    """Complete ``TURNS`` first turns of a chat domain, or ``SAMPLES`` openings of any other."""
    limit = TURN_TOKENS if is_chat(domain) else TEXT_TOKENS
    return complete(model, tokenizer, prompts_of(domain, tokenizer), limit)
