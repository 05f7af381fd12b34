"""Embeddings and labels of texts or images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of the inputs, in their order. Each vector has length 1."""

    model: str
    vectors: tuple[tuple[float, ...], ...]
    num_tokens: int  # of all inputs


@dataclass(frozen=True)
class Classification:
    """Label of one input, and the probability of every label."""

    label: str
    probabilities: Mapping[str, float]


@dataclass(frozen=True)
class Classifications:
    """Labels of the inputs, in their order."""

    model: str
    items: tuple[Classification, ...]
    num_tokens: int  # of all inputs


def parse_embeddings(body: Mapping[str, Any]) -> Embeddings:
    ordered = sorted(body["data"], key=lambda item: item["index"])
    vectors = tuple(tuple(map(float, item["embedding"])) for item in ordered)
    return Embeddings(body["model"], vectors, body["usage"]["prompt_tokens"])


def parse_classifications(body: Mapping[str, Any]) -> Classifications:
    items = tuple(
        Classification(item["label"], dict(zip(body["labels"], item["probs"], strict=True)))
        for item in sorted(body["data"], key=lambda item: item["index"])
    )
    return Classifications(body["model"], items, body["usage"]["prompt_tokens"])
