"""Trains some weights of a model on one domain, until the loss on text that is set aside stops falling."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from training.corpus import Domain, Tokens, rows_of
from training.errors import CorpusError
from training.gradients import row_losses

EVAL_ROWS = 4  # of one forward pass
SHOW_EVERY = 10  # steps
WARM_UP = 5  # steps


@dataclass(frozen=True)
class Tuning:
    """Settings of one training. Its result depends on ``minutes`` only if the training takes longer."""

    steps: int = 300
    length: int = 512  # tokens a row
    rows: int = 2  # of a step
    eval_every: int = 25  # steps
    patience: int = 3  # measurements without a lower loss, after which training ends
    validation_tokens: int = 6144  # of training documents, set aside
    minutes: float = 30.0  # at most; the learning rate falls to zero by then
    seed: int = 1


@dataclass(frozen=True)
class TuningText:
    """The training rows and the validation rows of a domain, which come from different training documents."""

    train: Tokens  # (rows, length + 1)
    validation: Tokens


class Trainable(Protocol):
    """The weights that are trained, in float32, beside a model that computes in another dtype."""

    @property
    def parameters(self) -> list[torch.nn.Parameter]: ...

    def collect_gradients(self) -> None:
        """Set the gradients of ``parameters`` after a backward pass of the model."""

    def publish(self) -> None:
        """Copy ``parameters`` into the model."""


@dataclass(frozen=True)
class Tuned:
    """Course of a training whose best weights were kept."""

    steps: int
    best_step: int
    tokens: int
    seconds: float
    curve: dict[int, float]  # validation perplexity by step

    @property
    def perplexities(self) -> tuple[float, float]:
        """Validation perplexity before and after."""
        return self.curve[0], self.curve[self.best_step]


def prepare_text(domain: Domain, tuning: Tuning) -> TuningText:
    """Set some training documents aside, and make rows of both parts, in an order that depends on the seed alone."""
    rng = np.random.default_rng(tuning.seed)
    order = [domain.train[index] for index in rng.permutation(len(domain.train))]
    needed = max(tuning.validation_tokens, tuning.length + 1)
    taken = int(np.searchsorted(np.cumsum([len(document) for document in order]), needed)) + 1
    validation, train = rows_of(order[:taken], tuning.length), rows_of(order[taken:], tuning.length)
    if len(train) < tuning.rows:
        raise CorpusError(f"domain {domain.name!r} has too little text to train on; add some, or shorten the rows")
    return TuningText(
        train[rng.permutation(len(train))], validation[: max(1, tuning.validation_tokens // tuning.length)]
    )


@torch.no_grad()
def mean_loss(model: PreTrainedModel, rows: Tokens) -> float:
    """Return the mean loss of rows, in nats per token."""
    parts = torch.split(_tensor(rows), EVAL_ROWS)
    return float(torch.cat([row_losses(model, part) for part in parts]).mean())


def learning_rate_scale(done: float, step: int) -> float:
    """Return the factor of the peak rate: a short warm-up, then a linear fall.

    Args:
        done: part of the training that is over.
    """
    return min(1.0, (step + 1) / WARM_UP) * max(0.0, 1.0 - done)


def tune(
    model: PreTrainedModel, weights: Trainable, text: TuningText, rate: float, *, tuning: Tuning, title: str = ""
) -> Tuned:
    """Train the weights with AdamW, and leave them as they were when the validation loss was lowest.

    Args:
        rate: the peak learning rate.
        title: begins the lines that show progress.
    """
    started, limit = time.monotonic(), tuning.minutes * 60
    parameters = weights.parameters
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    losses = {0: mean_loss(model, text.validation)}
    best_step, best, step = 0, _copies(parameters), 0
    is_over = False
    while not is_over:
        done = max(step / tuning.steps, (time.monotonic() - started) / limit)
        for group in optimizer.param_groups:
            group["lr"] = rate * learning_rate_scale(done, step)
        loss = row_losses(model, _tensor(_batch(text.train, step, tuning.rows))).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        weights.collect_gradients()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        weights.publish()
        step += 1
        is_late = step >= tuning.steps or time.monotonic() - started >= limit
        if step % tuning.eval_every == 0 or is_late:
            losses[step] = mean_loss(model, text.validation)
            if losses[step] < losses[best_step]:
                best_step, best = step, _copies(parameters)
        since = sum(measured > best_step for measured in losses)
        is_over = is_late or since >= tuning.patience
        if step % SHOW_EVERY == 0 or is_over:
            shown = math.exp(list(losses.values())[-1])
            print(f"{title} step {step} loss {loss.item():.3f} validation perplexity {shown:.2f}", flush=True)
    with torch.no_grad():
        for parameter, kept in zip(parameters, best, strict=True):
            parameter.copy_(kept)
    weights.publish()
    curve = {measured: round(math.exp(value), 3) for measured, value in losses.items()}
    tokens = step * tuning.rows * tuning.length
    return Tuned(step, best_step, tokens, round(time.monotonic() - started, 1), curve)


def _copies(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _batch(rows: Tokens, step: int, count: int) -> Tokens:
    batch: Tokens = rows[np.arange(step * count, (step + 1) * count) % len(rows)]
    return batch


def _tensor(rows: Tokens) -> torch.Tensor:
    values: npt.NDArray[np.int64] = rows.astype(np.int64)
    return torch.from_numpy(values)
