"""Descriptions of GGUF files, for lists of models."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from server.model.checkpoint.description import ModelDescription
from server.model.checkpoint.gguf.gguf_file import GgufFile

FILE_TYPE = "general.file_type"
GUESSED = 1024  # is added to the file type if the program that wrote the file did not know it
# The name of a file's mixture of types, and the type that most of its weights have (``llama_ftype`` of llama.cpp).
FILE_TYPES: Mapping[int, tuple[str, str]] = {
    0: ("F32", "F32"),
    1: ("F16", "F16"),
    2: ("Q4_0", "Q4_0"),
    3: ("Q4_1", "Q4_1"),
    7: ("Q8_0", "Q8_0"),
    8: ("Q5_0", "Q5_0"),
    9: ("Q5_1", "Q5_1"),
    10: ("Q2_K", "Q2_K"),
    11: ("Q3_K_S", "Q3_K"),
    12: ("Q3_K_M", "Q3_K"),
    13: ("Q3_K_L", "Q3_K"),
    14: ("Q4_K_S", "Q4_K"),
    15: ("Q4_K_M", "Q4_K"),
    16: ("Q5_K_S", "Q5_K"),
    17: ("Q5_K_M", "Q5_K"),
    18: ("Q6_K", "Q6_K"),
    19: ("IQ2_XXS", "IQ2_XXS"),
    20: ("IQ2_XS", "IQ2_XS"),
    21: ("Q2_K_S", "Q2_K"),
    22: ("IQ3_XS", "IQ3_S"),
    23: ("IQ3_XXS", "IQ3_XXS"),
    24: ("IQ1_S", "IQ1_S"),
    25: ("IQ4_NL", "IQ4_NL"),
    26: ("IQ3_S", "IQ3_S"),
    27: ("IQ3_M", "IQ3_S"),
    28: ("IQ2_S", "IQ2_XS"),
    29: ("IQ2_M", "IQ2_S"),
    30: ("IQ4_XS", "IQ4_XS"),
    31: ("IQ1_M", "IQ1_M"),
    32: ("BF16", "BF16"),
    36: ("TQ1_0", "TQ1_0"),
    37: ("TQ2_0", "TQ2_0"),
    38: ("MXFP4", "MXFP4"),
    39: ("NVFP4", "NVFP4"),
}
PLAIN_TYPES = frozenset({"F32", "F16", "BF16"})
LEAST_SHARE = 0.01  # of the weights, for a type to be named in a mixture
LONGEST_ARRAY, LONGEST_TEXT = 64, 1024  # values of metadata that are longer are left out
LICENCE = ("general.license.name", "general.license")
LICENCE_LINK = "general.license.link"


def describe_file(file: GgufFile) -> ModelDescription:
    """Describe a GGUF file."""
    names = [file.metadata[key] for key in LICENCE if isinstance(file.metadata.get(key), str)]
    link = file.metadata.get(LICENCE_LINK)
    return ModelDescription(
        "gguf",
        file.architecture,
        weights_label(file),
        sum(math.prod(tensor.shape) for tensor in file.tensors.values()),
        " ".join([*names[:1], *([link] if isinstance(link, str) else [])]),
        {key: found for key, value in file.metadata.items() if (found := _short(key, value)) is not None},
    )


def weights_label(file: GgufFile) -> str:
    """Return the name of the mixture of types that the file claims to be, or else its types, the most frequent first.

    A name is that of the file's type only if most weights have the type that it stands for, and none are quantised if
    that is a plain one: writers of mixtures of their own keep the file type of the one they began with.
    """
    counts = Counter[str]()
    for tensor in file.tensors.values():
        if len(tensor.shape) > 1:
            counts[tensor.type.name] += math.prod(tensor.shape)
    if not counts:
        return ""
    kinds = [name for name, count in counts.most_common() if count >= LEAST_SHARE * counts.total()]
    claimed = file.metadata.get(FILE_TYPE)
    label, main = FILE_TYPES.get(claimed & ~GUESSED if isinstance(claimed, int) else -1, ("", ""))
    is_quantised = not PLAIN_TYPES.issuperset(kinds)
    return label if main == kinds[0] and not (main in PLAIN_TYPES and is_quantised) else "+".join(kinds)


def _short(key: str, value: Any) -> Any:
    """Return a value of the metadata as JSON has it; None if it is too long for a description."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return value if len(value) <= LONGEST_ARRAY else None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return None if isinstance(value, str) and (len(value) > LONGEST_TEXT or "chat_template" in key) else value
