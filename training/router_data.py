"""Data of the comparison of routers: images of digits, and short pieces of text by domain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from training.corpus import read_corpus

HELD_OUT_IMAGES = 360  # of 1797
PIECE_TOKENS = 16
TRAIN_PIECES = 4000  # of each domain
HELD_OUT_PIECES = 120


@dataclass(frozen=True)
class Task:
    """A classification task.

    Attributes:
        inputs: of training, ``(examples, 1, height, width)`` float32 or ``(examples, tokens)`` int64.
        labels: int64 ``(examples,)``.
        held_out: inputs and labels that nothing is trained on.
        names: of the labels.
    """

    name: str
    inputs: torch.Tensor
    labels: torch.Tensor
    held_out: tuple[torch.Tensor, torch.Tensor]
    names: list[str]

    @property
    def is_vision(self) -> bool:
        return self.inputs.is_floating_point()


def digits() -> Task:
    """Return scikit-learn's images of digits, 8 x 8 pixels of 0 to 1."""
    # Its import sets environment variables, which should not reach all that imports this module.
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # noqa: PLC0415

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images = torch.from_numpy(found.images[order] / 16.0).float().unsqueeze(1)
    labels = torch.from_numpy(found.target[order]).long()
    held_out = images[:HELD_OUT_IMAGES], labels[:HELD_OUT_IMAGES]
    names = [str(digit) for digit in found.target_names]
    return Task("digits", images[HELD_OUT_IMAGES:], labels[HELD_OUT_IMAGES:], held_out, names)


def domains(corpus: Path, tokenizer: Path) -> Task:
    """Return pieces of ``PIECE_TOKENS`` tokens of a corpus; the label is the domain, each with as many pieces."""
    found = read_corpus(corpus, Tokenizer.from_file(str(tokenizer)))
    generator = np.random.default_rng(0)

    def pieces(parts: list[list[np.ndarray]], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = []
        for documents in parts:
            text = np.concatenate(documents).astype(np.int64)
            starts = generator.integers(0, len(text) - PIECE_TOKENS, count)
            rows += [text[start : start + PIECE_TOKENS] for start in starts]
        return torch.from_numpy(np.stack(rows)), torch.arange(len(parts)).repeat_interleave(count)

    train = pieces([list(domain.train) for domain in found], TRAIN_PIECES)
    held_out = pieces([list(domain.held_out) for domain in found], HELD_OUT_PIECES)
    return Task("domains", *train, held_out, [domain.name for domain in found])
