"""Measures the loss on held-out text, and the balance and specialisation of experts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from training.corpus import Domain, Tokens, rows_of

TOKENS_A_PASS = 4096
END_OF_TEXT_ID = 0

Shares = npt.NDArray[np.float64]


@dataclass
class Held:
    """Measurements of a model on one domain's held-out text."""

    num_tokens: int = 0
    num_bytes: int = 0
    nats: float = 0.0
    counts: list[Shares] = field(default_factory=list)  # per layer, (experts,): number of times each was chosen

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte; a document's end mark adds bits but no bytes."""
        return self.nats / math.log(2) / self.num_bytes


class ExpertCounter:
    """Context in which the experts that each layer's router chooses are counted."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.routers = [module for module in model.modules() if isinstance(module, Qwen3MoeTopKRouter)]
        self.counts = [np.zeros(router.num_experts) for router in self.routers]

    def __enter__(self) -> list[Shares]:
        self.hooks = [
            router.register_forward_hook(self._counting(counts))
            for router, counts in zip(self.routers, self.counts, strict=True)
        ]
        return self.counts

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    @staticmethod
    def _counting(counts: Shares) -> Any:
        def count(_module: object, _inputs: object, output: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
            np.add(counts, np.bincount(output[2].flatten(), minlength=len(counts)), out=counts)

        return count


def held_out_batches(documents: list[Tokens], length: int) -> Iterator[torch.Tensor]:
    """Yield all text in rows ``(rows, length + 1)``, the last one shorter; every token is a target once."""
    stream = [np.array([END_OF_TEXT_ID], np.uint16), *documents]
    rows = rows_of(stream, length)
    if len(rows):
        yield from torch.split(torch.from_numpy(rows.astype(np.int64)), max(1, TOKENS_A_PASS // length))
    rest = np.concatenate(stream)[len(rows) * length :]
    if len(rest) > 1:
        yield torch.from_numpy(rest.astype(np.int64))[None]


@torch.no_grad()
def measure(model: PreTrainedModel, domain: Domain, length: int) -> Held:
    """Measure the loss of every held-out token of a domain, in independent rows of ``length`` tokens."""
    held = Held(num_bytes=sum(len(text.encode()) for text in domain.held_out_texts))
    with ExpertCounter(model) as held.counts:
        for rows in held_out_batches(domain.held_out, length):
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits  # (rows, length, vocabulary)
            held.nats += float(F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction="sum"))
            held.num_tokens += rows[:, 1:].numel()
    return held


def mean_perplexity(held: list[Held]) -> float:
    """Return the perplexity at the mean loss; all domains have the same weight."""
    return math.exp(sum(each.nats_per_token for each in held) / len(held))


def expert_shares(held: list[Held]) -> Shares:
    """Return P(expert | domain) as ``(layers, domains, experts)``."""
    counts = np.stack([np.stack(each.counts) for each in held], axis=1)
    shares: Shares = counts / counts.sum(-1, keepdims=True)
    return shares


def variation(shares: Shares) -> float:
    """Return the coefficient of variation of expert usage, from ``(domains, experts)``; equal domain weights."""
    usage = shares.mean(0)
    return float(usage.std() / usage.mean())


def mutual_information(shares: Shares) -> float:
    """Return I(domain; expert) in bits, from P(expert | domain) ``(domains, experts)``; equal domain weights."""
    ratio = np.divide(shares, shares.mean(0), out=np.ones_like(shares), where=shares > 0)
    return float((shares * np.log2(ratio)).sum(-1).mean())


def most_information(num_domains: int, num_experts: int, top_k: int) -> float:
    """Return the upper bound of I(domain; expert) in bits.

    I(domain; expert) is at most H(domain), and at most H(expert) - H(expert | domain). The last term is at least
    log2(top_k), as a token never chooses one expert twice.
    """
    return math.log2(min(num_domains, num_experts / top_k))
