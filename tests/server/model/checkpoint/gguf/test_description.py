"""Lists of models tell what a GGUF file holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import pytest

from server.model.checkpoint.gguf.description import FILE_TYPES, describe_file, weights_label
from server.model.checkpoint.gguf.gguf_file import GgufFile
from tests.gguf.models import FILES, make_model
from tests.server.model.checkpoint.gguf.test_gguf_checkpoint import Q4_0, Q8_0, rewrite

CLAIMED = gguf.LlamaFileType


def test_names_of_file_types_are_those_of_the_package_gguf() -> None:
    for number, (name, main) in FILE_TYPES.items():
        assert CLAIMED(number).name.split("_", 1)[1].removesuffix("_MOE") == name
        assert main in gguf.GGMLQuantizationType.__members__


@pytest.mark.parametrize(
    ("claimed", "label"),
    [
        (CLAIMED.MOSTLY_Q8_0, "Q8_0"),
        (CLAIMED.MOSTLY_Q8_0 | CLAIMED.GUESSED, "Q8_0"),
        (CLAIMED.MOSTLY_Q4_K_M, "Q8_0+Q4_0"),
        (12345, "Q8_0+Q4_0"),
    ],
)
def test_a_mixture_has_the_name_of_its_type_only_if_most_weights_have_it(
    tmp_path: Path, claimed: int, label: str
) -> None:
    path = rewrite(tmp_path / "tiny.gguf", Q4_0, trunk=Q8_0, changes={"general.file_type": int(claimed)})
    assert weights_label(GgufFile.open(path.parent, path.name)) == label


def test_a_file_with_quantised_experts_is_not_said_to_be_plain(tmp_path: Path) -> None:
    path = rewrite(tmp_path / "tiny.gguf", Q4_0, changes={"general.file_type": int(CLAIMED.MOSTLY_BF16)})
    assert weights_label(GgufFile.open(path.parent, path.name)) == "BF16+Q4_0"


def test_types_of_few_weights_are_not_named(tmp_path: Path) -> None:
    path = rewrite(tmp_path / "tiny.gguf", Q8_0, trunk=Q8_0, changes={"general.file_type": 0})
    assert weights_label(GgufFile.open(path.parent, path.name)) == "Q8_0"


def test_parameters_are_those_of_the_model() -> None:
    found = describe_file(GgufFile.open(FILES, "qwen3moe.gguf"))
    assert found.num_parameters == sum(math.prod(each.shape) for each in make_model("qwen3moe").parameters())
    assert (found.format, found.architecture, found.weights) == ("gguf", "qwen3moe", "BF16")


def test_metadata_is_told_without_the_vocabulary() -> None:
    metadata: dict[str, Any] = dict(describe_file(GgufFile.open(FILES, "qwen3moe.gguf")).metadata)
    assert metadata["qwen3moe.expert_used_count"] == 2
    assert not any(key in metadata for key in ("tokenizer.ggml.tokens", "tokenizer.chat_template"))
