"""Names the tests that CI leaves to `make nightly`: most cases of those for every family, and the longest trials.

CI is to end in a quarter of an hour. Of each test of ``sweeps`` it takes a part of the cases.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
ROW = re.compile(r"^\| `(\w+)` \| \w+ \| (.+) \| (.+) \|$", re.MULTILINE)

NAMED = ("qwen3_moe", "deepseek_v3", "qwen3_5_moe", "gpt_oss", "gemma4")  # beside those of each kind
IN_ENGINE = ("qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_next", "glm_moe_dsa", "llama4_text")
WITH_IMAGES = ("qwen3_5_moe", "gemma4", "llama4", "kimi_k25", "glm46v", "ernie4_5_vl_moe", "qwen4_exp", "mistral3")
ON_CARD = (
    "qwen3_moe",
    "deepseek_v3",
    "qwen3_5_moe_text",
    "gpt_oss",
    "gemma4_text",
    "axk2",
    "nemotron_h",
    "lfm2_moe",
    "dbrx",
)
FORMATS_ON_CARD = ("published mxfp4", "published fp8", "pack bfloat16", "pack int8", "pack int4", "GGUF Q8_0")

TRIALS = (  # prefixes of the names of tests
    "tests/card/test_failures.py",
    "tests/card/test_prompts.py",
    "tests/expert_store/test_random_use.py::TestDevice",
    "tests/faults/test_35_full_disk.py::test_a_disk_that_is_full_from_any_call_on_leaves_the_old_pack_alone[fresh]",
    "tests/faults/test_36_pack_killed.py::test_after_a_kill_at_any_call_the_pack_is_old_or_new[fresh]",
    "tests/faults/test_36_pack_killed.py::test_after_an_input_output_error_at_any_call_the_pack_is_old_or_new",
    "tests/fuzz/parsers/test_parsers.py::test_no_parser_fails_in_a_short_fuzzing",
    "tests/fuzz/test_traces.py::test_answers_in_random_traces_are_those_of_the_requests_alone",
    "tests/server/engine/sampling/test_lexer_sizes.py::test_a_grammar_takes_no_more_memory_than_it_holds[states",
    "tests/soak",
)


def of_each_kind() -> list[str]:
    """Return the families whose attention or expert tensors no earlier one has in docs/models.md."""
    seen: set[str] = set()
    kinds = []
    for name, *facts in ROW.findall(PAGE.read_text("utf-8")):
        if not seen.issuperset(facts):
            kinds.append(name)
            seen.update(facts)
    return kinds


@cache
def sweeps() -> Mapping[str, Collection[object]]:
    """Return the values of parameters with which CI runs a test; other cases have none of them."""
    kinds = {*NAMED, *of_each_kind()}
    on_card, model = {*ON_CARD, *FORMATS_ON_CARD}, "tests/server/model"
    families, native = f"{model}/test_families.py", f"{model}/native_layers"
    return {
        "tests/card/test_paging.py::test_experts_paged_through_a_card_give_the_logits_of_the_cpu": on_card,
        "tests/server/engine/test_models.py::test_batched_requests_equal_transformers_generate": IN_ENGINE,
        f"{families}::test_a_checkpoint_with_the_names_of_transformers_gives_the_same_bits": kinds,
        f"{families}::test_a_deterministic_family_is_batch_invariant": kinds,
        f"{families}::test_a_pack_of_a_family_gives_the_same_bits": kinds,
        f"{families}::test_the_config_of_a_family_shows_the_facts_of_its_trunk": kinds,
        f"{model}/multimodal/test_image_parity.py::test_images_give_the_logits_of_transformers_own_model": WITH_IMAGES,
        f"{native}/test_native_images.py::test_native_layers_take_images": WITH_IMAGES,
        f"{native}/test_native_layers.py::test_native_layers_give_what_the_modules_give": kinds,
        f"{native}/test_native_layers.py::test_other_sequences_change_no_bit_of_native_layers": kinds,
    }


def is_nightly(item: pytest.Item) -> bool:
    """Return True if CI leaves out a test."""
    if item.nodeid.startswith(TRIALS):
        return True
    chosen = sweeps().get(item.nodeid.partition("[")[0])
    if chosen is None:
        return False
    values = item.callspec.params.values()  # type: ignore[attr-defined]  # pytest has no public type for it
    return not any(value in chosen for value in values)
