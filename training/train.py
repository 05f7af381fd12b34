"""Trains the bundled model, or the dense model it is compared with, on a folder of ``DOMAIN.txt[.zst]``.

    python -m training.train CORPUS RUN --tokenizer tokenizer.json [--dense]

RUN is a folder for checkpoints and logs; the same command with the same RUN resumes training. ``--start MODEL``
continues an exported model, whose optimizers begin anew.
The learning rate is constant after a short warm-up, and falls linearly over the last part of ``--tokens``. Rows are
short, for speed, except in the last part, which teaches the model longer contexts.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from training.architecture import Shape, build_model
from training.corpus import Batches, Domain, read_corpus, rows_of
from training.errors import DemoError, RunError
from training.gate import train_routers
from training.gradients import add_gradients, bfloat16_copy, row_losses
from training.muon import Muon
from training.run_settings import Settings, learning_rate_scale

EVAL_ROWS = 24  # per domain, during training; the report uses all rows
SHOW_EVERY = 10  # steps
CHANGES = "changes.jsonl"  # of settings, on the way


@dataclass
class Progress:
    """Progress of a run."""

    step: int = 0
    tokens: int = 0


def build_optimizers(model: nn.Module, settings: Settings, pool: ThreadPoolExecutor) -> list[torch.optim.Optimizer]:
    """Build Muon for the matrices of attention and experts, and AdamW for embedding, router gates and norms."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, param in model.named_parameters():
        is_matrix = param.ndim > 1 and "embed" not in name and not name.endswith(".gate.weight")
        if name.endswith("gate_up_proj"):
            param.muon_blocks = 2  # type: ignore[attr-defined]
        (matrices if is_matrix else rest).append(param)
    return [
        Muon(
            matrices,
            lr=settings.muon_lr,
            momentum=0.95,
            weight_decay=0.05,
            pool=pool,
            dtype=torch.bfloat16 if settings.bfloat16 else torch.float32,
        ),
        torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


@torch.no_grad()
def evaluate(model: PreTrainedModel, domains: list[Domain], length: int) -> dict[str, float]:
    """Return the perplexity on the first held-out rows of each domain that has a complete row."""
    model.eval()
    result = {}
    for domain in domains:
        rows = torch.from_numpy(rows_of(domain.held_out, length)[:EVAL_ROWS].astype(np.int64))
        if len(rows):
            losses = torch.cat([row_losses(model, part) for part in torch.split(rows, 8)])
            result[domain.name] = round(math.exp(losses.mean()), 2)
    model.train()
    return result


class Trainer:
    """A run: its model, optimizers and progress, which ``state.pt`` stores."""

    def __init__(
        self,
        run: Path,
        settings: Settings,
        domains: list[Domain],
        vocab_size: int,
        pool: ThreadPoolExecutor,
        *,
        shape: Shape | None = None,
    ) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.pool = settings, pool
        self.checkpoint = run / "state.pt"
        self.model = build_model(vocab_size, dense=settings.dense, shape=shape)
        if settings.start and not self.checkpoint.exists():
            self._start(Path(settings.start))
        self.computed = bfloat16_copy(self.model) if settings.bfloat16 else self.model
        self.routers = train_routers(self.computed, settings.balance_weight, settings.z_weight)
        self.optimizers = build_optimizers(self.model, settings, pool)
        self.batches, self.final_batches = (
            Batches(domains, length, settings.repeat, settings.seed, settings.batch_tokens // length)
            for length in (settings.length, settings.final_length)
        )
        self.progress = Progress()
        self.losses = np.full(len(domains), math.nan)  # recent training loss by domain
        if self.checkpoint.exists():
            self._restore()
        self.computed.train()
        self._copy_weights()

    @property
    def finished(self) -> bool:
        return self.progress.tokens >= self.settings.tokens

    def step(self) -> None:
        """Train on one batch."""
        scale = learning_rate_scale(self.progress.tokens, self.settings)
        for optimizer, peak in zip(self.optimizers, (self.settings.muon_lr, self.settings.lr), strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
        rows, labels = self._batch()
        params = list(self.model.parameters())
        losses = add_gradients(
            self.computed, params, torch.from_numpy(rows), self.settings, step=self.progress.step, pool=self.pool
        )
        for router in self.routers:
            router.end_step()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self._copy_weights()
        for index, loss in zip(labels, losses, strict=True):
            recent = self.losses[index]
            self.losses[index] = loss if math.isnan(recent) else 0.95 * recent + 0.05 * loss
        self.progress.step += 1
        self.progress.tokens += self.settings.batch_tokens

    @torch.no_grad()
    def _copy_weights(self) -> None:
        """Copy the weights to the model that is computed, if it is another."""
        if self.computed is not self.model:
            for low, param in zip(self.computed.parameters(), self.model.parameters(), strict=True):
                low.copy_(param)

    def _start(self, folder: Path) -> None:
        """Begin with the weights of an exported model."""
        try:
            started = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            self.model.load_state_dict(started.state_dict())
        except (OSError, ValueError, RuntimeError) as error:
            raise RunError(f"--start {folder} is no model of the trained architecture: {error}") from error

    def _batch(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the next rows and their domains: short rows first, long rows at the end."""
        in_final = self.progress.tokens - self.settings.short_tokens
        if in_final < 0:
            return self.batches.take(self.progress.tokens // self.settings.length)
        return self.final_batches.take(in_final // self.settings.final_length)

    def save(self) -> None:
        """Write ``state.pt`` atomically."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "usage": [router.usage for router in self.routers],
            "state": asdict(self.progress),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def _restore(self) -> None:
        saved = torch.load(self.checkpoint, weights_only=True)
        try:
            self.model.load_state_dict(saved["model"])
        except RuntimeError as error:
            raise RunError(f"{self.checkpoint} belongs to another model; choose another RUN") from error
        for optimizer, value in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(value)
        for router, usage in zip(self.routers, saved["usage"], strict=True):
            router.usage = usage
        self.progress = Progress(saved["state"]["step"], saved["state"]["tokens"])


class Log:
    """Writes a run's ``train.jsonl`` and ``eval.jsonl``, and prints the progress."""

    def __init__(self, run: Path, trainer: Trainer, domains: list[Domain]) -> None:
        self.run, self.trainer, self.domains = run, trainer, domains
        self._mark()

    def _mark(self) -> None:
        self.time, self.tokens = time.monotonic(), self.trainer.progress.tokens

    def _write(self, name: str, **values: Any) -> None:
        with (self.run / name).open("a") as file:
            file.write(json.dumps({**asdict(self.trainer.progress), **values}) + "\n")

    def training(self) -> None:
        """Log the recent loss by domain, the balance of experts by layer, and the speed since the last call."""
        trainer, progress = self.trainer, self.trainer.progress
        speed = (progress.tokens - self.tokens) / (time.monotonic() - self.time)
        minutes = (trainer.settings.tokens - progress.tokens) / speed / 60
        self._mark()
        losses = {
            domain.name: None if math.isnan(loss) else round(float(loss), 3)
            for domain, loss in zip(self.domains, trainer.losses, strict=True)
        }
        imbalance = [round(router.imbalance, 2) for router in trainer.routers]
        self._write("train.jsonl", loss=losses, imbalance=imbalance, tokens_per_second=round(speed))
        print(
            f"step {progress.step} tokens {progress.tokens:,} loss {np.nanmean(trainer.losses):.3f} "
            f"scale {learning_rate_scale(progress.tokens, trainer.settings):.2f} "
            f"{speed:,.0f} tokens/s {minutes:.0f} min left",
            flush=True,
        )

    def evaluation(self) -> None:
        perplexity = evaluate(self.trainer.computed, self.domains, self.trainer.settings.length)
        self._write("eval.jsonl", perplexity=perplexity)
        print("held-out perplexity", perplexity, flush=True)


def train(corpus: Path, run: Path, tokenizer_file: Path, settings: Settings, *, shape: Shape | None = None) -> None:
    """Train a run to its end, from the start or from its last checkpoint."""
    if not tokenizer_file.is_file():
        raise RunError(f"tokenizer {tokenizer_file} does not exist")
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    domains = read_corpus(corpus, tokenizer)
    for domain in domains:
        trained, held_out = (sum(map(len, part)) for part in (domain.train, domain.held_out))
        print(f"{domain.name:12s} {trained:9,d} tokens, {held_out:7,d} held out, {domain.dropped} left out")
    run.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(settings.threads) as pool:
        trainer = Trainer(run, settings, domains, tokenizer.get_vocab_size(), pool, shape=shape)
        _write_settings(run, settings, trainer.progress)
        print(f"from step {trainer.progress.step}, {trainer.progress.tokens:,} of {settings.tokens:,} tokens")
        log = Log(run, trainer, domains)
        saved_at = time.monotonic()
        while not trainer.finished:
            trainer.step()
            if trainer.progress.step % SHOW_EVERY == 0:
                log.training()
            if trainer.progress.step % settings.eval_every == 0 or trainer.finished:
                log.evaluation()
            if trainer.finished or time.monotonic() - saved_at >= settings.save_minutes * 60:
                trainer.save()
                saved_at = time.monotonic()


def _write_settings(run: Path, settings: Settings, progress: Progress) -> None:
    """Write ``settings.json``; if a run is resumed with other settings, keep the old ones in ``changes.jsonl``."""
    path = run / "settings.json"
    values = asdict(settings)
    if path.exists() and progress.step:
        old = json.loads(path.read_text())
        changed = {name: value for name, value in values.items() if old.get(name) != value and name != "threads"}
        if changed:
            with (run / CHANGES).open("a") as file:
                file.write(json.dumps({**asdict(progress), "before": {name: old.get(name) for name in changed}}) + "\n")
    path.write_text(json.dumps(values, indent=2) + "\n")


def _whole_number(text: str) -> int:
    return int(float(text))


def _times(text: str) -> tuple[str, int]:
    name, _, times = text.partition("=")
    return name, int(times)


def parse_args() -> argparse.Namespace:
    default = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--dense", action="store_true", help="the dense model of equal active parameters")
    parser.add_argument("--tokens", type=_whole_number, default=default.tokens)
    parser.add_argument("--batch-tokens", type=int, default=default.batch_tokens)
    parser.add_argument("--length", type=int, default=default.length, help="tokens a row")
    parser.add_argument("--final-length", type=int, default=default.final_length, help="tokens a row at the end")
    parser.add_argument(
        "--final-share", type=float, default=default.final_share, help="part of --tokens in rows of --final-length"
    )
    parser.add_argument("--micro-tokens", type=int, default=default.micro_tokens, help="of one forward pass")
    parser.add_argument("--decay", type=float, default=default.decay, help="part of --tokens over which the rate falls")
    parser.add_argument("--muon-lr", type=float, default=default.muon_lr)
    parser.add_argument("--lr", type=float, default=default.lr, help="of AdamW")
    parser.add_argument("--balance-weight", type=float, default=default.balance_weight)
    parser.add_argument("--z-weight", type=float, default=default.z_weight)
    parser.add_argument(
        "--repeat", nargs="*", type=_times, default=default.repeat.items(), help="DOMAIN=N: N times an epoch"
    )
    parser.add_argument("--eval-every", type=int, default=default.eval_every, help="steps")
    parser.add_argument("--save-minutes", type=float, default=default.save_minutes, help="between checkpoints")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--start", default=default.start, help="folder of an exported model to train on")
    parser.add_argument(
        "--bfloat16", action="store_true", help="compute in bfloat16: faster on processors that multiply it"
    )
    parser.add_argument("--threads", type=int, default=default.threads, help="micro-batches computed at a time")
    return parser.parse_args()


def main() -> None:
    values = vars(parse_args())
    corpus, run, tokenizer = (values.pop(name) for name in ("corpus", "run", "tokenizer"))
    torch.set_num_threads(1)
    try:
        train(corpus, run, tokenizer, Settings(**{**values, "repeat": dict(values["repeat"])}))
    except DemoError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
