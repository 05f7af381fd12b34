"""Writes the ``routing.json`` of an adapter: prompts of its domain, by which the model ``auto`` finds it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from server.demo.corpus import Domain

NAME = "routing.json"
NUM_EXAMPLES = 16
EXAMPLE_TOKENS = 96
DESCRIPTIONS = {
    "legal": "Statutes and other legal text: sections, subsections, duties, rights, licences, fines and councils.",
    "python": "Source code in Python: modules, classes, functions, docstrings and comments.",
    "recipes": "Cooking: recipes, ingredients, and how to prepare, boil, bake and serve dishes.",
}


def write_routing(folder: Path, domain: Domain, tokenizer: Tokenizer) -> None:
    """Write examples from training documents: the beginning of some, and a passage from within the others."""
    count = min(NUM_EXAMPLES, len(domain.train))
    examples = []
    for number, index in enumerate(np.linspace(0, len(domain.train) - 1, count).astype(int)):
        document = domain.train[index][:-1]  # without its end mark
        start = max(0, len(document) - EXAMPLE_TOKENS) // 2 if number % 2 else 0
        examples.append(tokenizer.decode(document[start : start + EXAMPLE_TOKENS].tolist()).strip("\ufffd \n"))
    values = {
        "description": DESCRIPTIONS.get(domain.name, f"Text like that of the domain {domain.name}."),
        "examples": examples,
    }
    (folder / NAME).write_text(json.dumps(values, indent=1) + "\n")
