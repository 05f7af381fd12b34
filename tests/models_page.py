"""Writes docs/models.md from what every family gives: ``python -m tests.models_page``."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import transformers

from tests.families import FAMILIES
from tests.family_checks import Refused, Served, examine
from tests.vision import VISIONS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
TEXT = """# Models

Every Mixture-of-Experts family of transformers {version} that writes text, by the `model_type` in its `config.json`.
`python -m tests.models_page` writes this page from what it finds, and `tests/server/model/test_families.py` checks each
line of it.

## Served: {served}

A tiny random checkpoint of each, saved with the names and shapes that transformers publishes, gives stock
transformers' logits (to 1e-4 of their range, in float32) and stock's greedy text: prompts of 1 to 11 tokens in one
ragged batch, that go in three tokens at a time beside decodes, over a cache of as few experts as a token chooses.

A checkpoint with the names that transformers' own modules have gives the same bits, and so does a bfloat16 pack;
`--deterministic` gives the same bits in any company.

Of a multimodal model this is what it makes of text, and stock is the whole model, its towers included. One that takes
any text model of transformers (`internvl`, `mistral3`) is checked with one of several that it is published with.

Attention is what a first pass over the model shows; in chunks, a token sees what is in its own chunk. The
tensors are those that one expert is read from, after the name of its layer; `*` is the expert's number, and where there
is none, one tensor holds all experts of the layer.

Rotary scalings are compared with stock too (`tests/server/model/test_rope.py`). A model with "longrope" serves
sequences of up to its `original_max_position_embeddings`: past them transformers takes other frequencies for all tokens
of a step, those of shorter sequences too.

| model type | class | attention | tensors of an expert |
| --- | --- | --- | --- |
{served_rows}

## With images: {with_images}

{images}.

Prompts with images through a tiny image processor of each give the whole stock model's logits and the greedy text of
its `generate`: two prompts with different images and one of text in one ragged batch, whole and in pieces of five
tokens (`tests/server/model/test_images.py`). Images of other families go the same way, and are not checked. Video and
sound are not taken.

## Refused: {refused}

Each is refused by its `config.json` alone, before any weight is read.

| model type | reason |
| --- | --- |
{refused_rows}
"""


def compose(results: Sequence[Served | Refused]) -> str:
    """The page of some results."""
    served = [str(result) for result in results if isinstance(result, Served)]
    refused = [str(result) for result in results if isinstance(result, Refused)]
    return TEXT.format(
        version=transformers.__version__,
        served=len(served),
        served_rows="\n".join(served),
        with_images=len(VISIONS),
        images=", ".join(f"`{model_type}`" for model_type in sorted(VISIONS)),
        refused=len(refused),
        refused_rows="\n".join(refused),
    )


def main() -> None:
    """Examine every family and write the page."""
    results = []
    for model_type in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            results.append(examine(model_type, Path(folder)))
    PAGE.write_text(compose(results), "utf-8")


if __name__ == "__main__":
    main()
