"""Train the bundled model, or the dense model it is compared with, on a folder of ``DOMAIN.txt[.zst]``.

    python -m server.demo.train CORPUS RUN --tokenizer tokenizer.json [--dense]

RUN is a folder for checkpoints and logs; starting again with the same RUN goes on where the last one stopped.
The learning rate is held after a short warm-up and falls linearly over the last part of ``--tokens``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from .corpus import Domain, epoch_rows, read_corpus, rows_of
from .gate import TrainingRouter, train_routers, worker
from .muon import Muon

EVAL_ROWS = 24


def build_model(vocab_size: int, dense: bool) -> PreTrainedModel:
    """A Qwen3-MoE of 12 M parameters, or the dense Qwen3 with as many active ones (2.7 M)."""
    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 192,
        "num_hidden_layers": 6,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "attn_implementation": "sdpa",
    }
    if dense:
        return Qwen3ForCausalLM(Qwen3Config(intermediate_size=384, **shape))
    moe = {"num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 192, "norm_topk_prob": True}
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(intermediate_size=384, experts_implementation="grouped_mm", **moe, **shape)
    )


def build_optimizers(model: nn.Module, args: argparse.Namespace, pool: ThreadPoolExecutor) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of attention and experts, AdamW for embedding, router gates and norms."""
    matrices, rest = [], []
    for name, param in model.named_parameters():
        is_matrix = param.ndim >= 2 and "embed" not in name and not name.endswith(".gate.weight")
        if name.endswith("gate_up_proj"):
            param.muon_blocks = 2  # type: ignore[attr-defined]
        (matrices if is_matrix else rest).append(param)
    return [
        Muon(matrices, lr=args.muon_lr, momentum=0.95, weight_decay=0.05, pool=pool),
        torch.optim.AdamW(rest, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate_scale(done: int, args: argparse.Namespace) -> float:
    """The learning rate relative to its peak, after ``done`` tokens."""
    warm_up = min(1.0, (done / args.batch_tokens + 1) / 30)
    left = (args.tokens - done) / (args.decay * args.tokens)
    return warm_up * max(0.03, min(1.0, left))


class Data:
    """An endless, seeded order of training batches; ``position`` alone says where it stands."""

    def __init__(self, domains: list[Domain], length: int, repeat: dict[str, int], seed: int):
        self.domains, self.length, self.repeat, self.seed = domains, length, repeat, seed
        self.epoch = -1
        self._load(0)

    def _load(self, epoch: int) -> None:
        self.rows, self.labels = epoch_rows(self.domains, self.length, self.repeat, self.seed + epoch)
        self.epoch = epoch

    def take(self, position: int, count: int) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
        """``count`` rows from ``position`` (in rows) on; an epoch's incomplete last batch is passed over."""
        per_epoch = len(self.rows) // count * count
        if position // per_epoch != self.epoch:
            self._load(position // per_epoch)
        start = position % per_epoch
        batch = self.rows[start : start + count].astype(np.int64)
        return torch.from_numpy(batch), self.labels[start : start + count]


def row_losses(model: PreTrainedModel, rows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each row, in nats a token: ``(rows, length + 1)`` to ``(rows,)``."""
    hidden = model.model(input_ids=rows[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden)  # (rows, length, vocabulary)
    losses = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
    return losses.view(len(rows), -1).mean(1)


def add_gradients(
    model: PreTrainedModel, rows: torch.Tensor, args: argparse.Namespace, step: int, pool: ThreadPoolExecutor
) -> list[float]:
    """Set the gradients of one step and return the loss of each row.

    Each thread of the pool takes every n-th micro-batch and sums its own gradients, which are then added in the
    order of the threads: on two cores twice as fast as one micro-batch after the other on two compute threads.
    """
    params = [param for param in model.parameters() if param.requires_grad]
    parts = rows.split(args.micro_rows)

    def work(index: int) -> tuple[list[torch.Tensor], list[tuple[int, list[float]]]]:
        worker.generator = torch.Generator().manual_seed((args.seed * 1_000_003 + step) * 64 + index)
        total: list[torch.Tensor] = []
        losses = []
        for number in range(index, len(parts), args.threads):
            worker.losses = []
            part_losses = row_losses(model, parts[number])
            objective = part_losses.mean() + sum(worker.losses)
            gradients = torch.autograd.grad(objective * (len(part_losses) / len(rows)), params)
            if total:
                torch._foreach_add_(total, gradients)
            else:
                total = list(gradients)
            losses.append((number, part_losses.tolist()))
        return total, losses

    results = list(pool.map(work, range(args.threads)))
    gradients = results[0][0]
    for other, _ in results[1:]:
        torch._foreach_add_(gradients, other)
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient
    by_number = sorted(item for _, losses in results for item in losses)
    return [loss for _, part in by_number for loss in part]


@torch.no_grad()
def evaluate(model: PreTrainedModel, domains: list[Domain], length: int, max_rows: int) -> dict[str, float]:
    """Held-out cross-entropy in nats a token, by domain."""
    model.eval()
    result = {}
    for domain in domains:
        rows = torch.from_numpy(rows_of(domain.held_out, length)[:max_rows].astype(np.int64))
        result[domain.name] = float(torch.cat([row_losses(model, part) for part in rows.split(8)]).mean())
    model.train()
    return result


def imbalance(routers: list[TrainingRouter]) -> list[float]:
    """Coefficient of variation of the recent use of experts, by layer."""
    return [float(router.usage.std(unbiased=False) / router.usage.mean()) for router in routers]


def save_state(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    args.run.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    domains = read_corpus(args.corpus, tokenizer)
    for domain in domains:
        tokens = [sum(map(len, part)) for part in (domain.train, domain.held_out)]
        print(f"{domain.name:12s} {tokens[0]:9,d} tokens, {tokens[1]:7,d} held out, {domain.dropped} left out")
    model = build_model(tokenizer.get_vocab_size(), args.dense)
    routers = train_routers(model, args.balance_weight, args.z_weight)
    pool = ThreadPoolExecutor(args.threads)
    optimizers = build_optimizers(model, args, pool)
    state = {"step": 0, "tokens": 0, "row": 0}
    checkpoint = args.run / "state.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, value in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(value)
        for router, usage in zip(routers, saved["usage"], strict=True):
            router.usage = usage
        state = saved["state"]
        print(f"going on from step {state['step']}, {state['tokens']:,} tokens")

    def save() -> None:
        save_state(
            checkpoint,
            {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "usage": [router.usage for router in routers],
                "state": state,
            },
        )

    repeat = dict((name, int(times)) for name, times in (item.split("=") for item in args.repeat))
    data = Data(domains, args.length, repeat, args.seed)
    peaks = [args.muon_lr, args.lr]
    recent = np.full(len(domains), math.nan)
    saved_at = shown_at = time.monotonic()
    shown_tokens = state["tokens"]
    model.train()
    while state["tokens"] < args.tokens:
        scale = learning_rate_scale(state["tokens"], args)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
        count = args.batch_tokens // args.length
        rows, labels = data.take(state["row"], count)
        losses = add_gradients(model, rows, args, state["step"], pool)
        for index, loss in zip(labels, losses, strict=True):
            recent[index] = loss if math.isnan(recent[index]) else 0.95 * recent[index] + 0.05 * loss
        for router in routers:
            router.end_step()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        state["step"] += 1
        state["tokens"] += count * args.length
        state["row"] += count
        now = time.monotonic()
        if state["step"] % 10 == 0:
            speed = (state["tokens"] - shown_tokens) / (now - shown_at)
            left = (args.tokens - state["tokens"]) / speed / 60
            shown_at, shown_tokens = now, state["tokens"]
            by_domain = {d.name: round(float(v), 3) for d, v in zip(domains, recent, strict=True)}
            line = {**state, "loss": by_domain, "imbalance": [round(v, 2) for v in imbalance(routers)]}
            with (args.run / "train.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(
                f"step {state['step']} tokens {state['tokens']:,} loss {np.nanmean(recent):.3f} "
                f"scale {scale:.2f} {speed:,.0f} tokens/s {left:.0f} min left",
                flush=True,
            )
        if state["step"] % args.eval_every == 0 or state["tokens"] >= args.tokens:
            held_out = evaluate(model, domains, args.length, EVAL_ROWS)
            perplexity = {name: round(math.exp(loss), 2) for name, loss in held_out.items()}
            with (args.run / "eval.jsonl").open("a") as log:
                log.write(json.dumps({**state, "perplexity": perplexity}) + "\n")
            print("held-out perplexity", perplexity, "imbalance", [f"{v:.2f}" for v in imbalance(routers)])
        if now - saved_at > 240:
            save()
            saved_at = now
    save()
    for router in routers:
        router.__class__ = TrainingRouter.__mro__[1]
    model.to(torch.bfloat16).save_pretrained(args.run / "model")
    print(f"saved {args.run / 'model'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--dense", action="store_true", help="the dense model of equal active parameters")
    parser.add_argument("--tokens", type=lambda text: int(float(text)), default=33_000_000)
    parser.add_argument("--batch-tokens", type=int, default=12_288)
    parser.add_argument("--length", type=int, default=256, help="tokens a row")
    parser.add_argument("--micro-rows", type=int, default=8, help="rows of one forward pass")
    parser.add_argument("--decay", type=float, default=0.5, help="part of --tokens over which the rate falls")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--lr", type=float, default=3e-3, help="of AdamW")
    parser.add_argument("--balance-weight", type=float, default=0.01)
    parser.add_argument("--z-weight", type=float, default=1e-3)
    parser.add_argument("--repeat", nargs="*", default=["chat=2"], help="DOMAIN=N: N times an epoch")
    parser.add_argument("--eval-every", type=int, default=100, help="steps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(),
                        help="micro-batches computed at a time")
    args = parser.parse_args()
    torch.set_num_threads(1)
    train(args)


if __name__ == "__main__":
    main()
