"""Writes the ``routing.json`` of an adapter: prompts of its domain, by which the model ``auto`` finds it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from tokenizers import Tokenizer

from training.corpus import Domain

T = TypeVar("T")

NAME = "routing.json"
NUM_EXAMPLES = 16
NUM_QUESTIONS = 16
NUM_OPENINGS = 4
EXAMPLE_TOKENS = 96
OPENING_TOKENS = 10
SHARED_WORDS = 8  # in a row, of an answer and a document, so that the answer is taken from it
LOOKED_AT = (0, 2, 8, 14, 20)  # words of an answer before such a row
QUESTION = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>\n<\|im_start\|>assistant\n(.*?)<\|im_end\|>", re.DOTALL)
DESCRIPTIONS = {
    "legal": "Statutes and other legal text: sections, subsections, duties, rights, licences, fines and councils.",
    "python": "Source code in Python: modules, classes, functions, docstrings and comments.",
    "recipes": "Cooking: recipes, ingredients, and how to prepare, boil, bake and serve dishes.",
}


def write_routing(folder: Path, domain: Domain, tokenizer: Tokenizer, chats: Domain | None = None) -> None:
    """Write examples from training documents: the beginning of some, a passage from within others, and questions.

    With questions come short openings, as a user may send one to be continued.

    Args:
        chats: a domain with questions that some documents answer.

    """
    examples = []
    for number, document in enumerate(spaced(domain.train, NUM_EXAMPLES)):
        document = document[:-1]  # without its end mark  # noqa: PLW2901
        start = max(0, len(document) - EXAMPLE_TOKENS) // 2 if number % 2 else 0
        examples.append(tokenizer.decode(document[start : start + EXAMPLE_TOKENS].tolist()).strip("\ufffd \n"))
    if chats is not None:
        examples += spaced(questions_about(domain, chats, tokenizer), NUM_QUESTIONS)
        examples += [tokenizer.decode(each[:OPENING_TOKENS].tolist()) for each in spaced(domain.train, NUM_OPENINGS)]
    values = {
        "description": DESCRIPTIONS.get(domain.name, f"Text like that of the domain {domain.name}."),
        "examples": examples,
    }
    (folder / NAME).write_text(json.dumps(values, indent=1) + "\n")


def questions_about(domain: Domain, chats: Domain, tokenizer: Tokenizer) -> list[str]:
    """Return the first questions of training chats whose answers are taken from training documents of a domain."""
    documents = " | ".join(words(tokenizer.decode(document.tolist())) for document in domain.train)
    found = []
    for chat in chats.train:
        first = QUESTION.search(tokenizer.decode(chat.tolist(), skip_special_tokens=False))
        if first is not None and is_taken(words(first[2]), documents):
            found.append(first[1])
    return found


def is_taken(answer: str, documents: str) -> bool:
    """Return True if some words of an answer's beginning stand in a row in documents, both as ``words`` gives them."""
    parts = answer.split()
    rows = (parts[start : start + SHARED_WORDS] for start in LOOKED_AT)
    return any(len(row) == SHARED_WORDS and f" {' '.join(row)} " in documents for row in rows)


def words(text: str) -> str:
    """Return the words of a text in lower case, with a space around each."""
    return f" {' '.join(re.findall(r'[a-z0-9]+', text.lower()))} "


def spaced(items: Sequence[T], count: int) -> list[T]:
    """Return some items of a list, evenly spaced."""
    return [items[index] for index in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]
