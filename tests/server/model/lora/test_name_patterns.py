"""Patterns of modules' names: those that PEFT finds, in little time."""

import itertools

import pytest
from peft.utils.other import get_pattern_key

from server.model.lora.name_patterns import MAX_EXPRESSIONS, MAX_PATTERN, NamePatterns

NAMES = (
    "q_proj",
    "model.q_proj",
    "model.my_q_proj",
    "model.layers.0.self_attn.q_proj",
    "model.layers.10.self_attn.q_proj",
    "model.layers.1.mlp.experts.gate_up_proj",
    "model.layers.1.mlp.gate",
    "layers.1.mlp.gate",
)
PATTERNS = (
    "q_proj",
    "layers.0.self_attn.q_proj",
    r"layers\.1\.mlp\.gate",
    "^q_proj",
    "^layers.1.mlp.gate$",
    r".*\.experts.*",
    r"layers\.(0|10)\.self_attn\.q_proj",
    r"^model\.layers\.\d+\.mlp\.(gate|experts)$",
    r"(q|k)_proj|[a-z]ate",
    "q_proj$",
    r"layers\.\d{2}\..+",
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_the_names_that_it_matches_in_peft(pattern: str) -> None:
    patterns = NamePatterns([pattern])
    assert [patterns.find(name) or name for name in NAMES] == [get_pattern_key([pattern], name) for name in NAMES]


@pytest.mark.parametrize(
    "order", [*itertools.permutations(("q_proj", ".*_proj", "layers.0.self_attn.q_proj"))], ids=" ".join
)
def test_the_first_pattern_that_matches_counts(order: tuple[str, ...]) -> None:
    assert NamePatterns(order).find("model.layers.0.self_attn.q_proj") == order[0]


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "pattern", [r"(([a-z_.0-9])+)+!", r"(\w+\.?)*!", r"(a|a)*" * 100 + "!", "(?:a?){30000}a{30000}"]
)
def test_a_name_is_matched_in_little_time_whatever_the_pattern(pattern: str) -> None:
    patterns = NamePatterns([pattern])
    assert patterns.find("model.layers.0.self_attn." + "a" * 200) is None


@pytest.mark.timeout(10)
def test_many_names_are_found_among_many_patterns_in_little_time() -> None:
    names = [f"model.layers.{layer}.mlp.experts.{expert}.up_proj" for layer in range(60) for expert in range(100)]
    patterns = NamePatterns(names)
    assert [patterns.find(name) for name in names] == names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["("], "no regular expression"),
        (["(?!q_proj).*"], "look-around"),
        ([r"(q)_\1"], "references"),
        (["^q_proj|k_proj"], "anchors in the middle"),
        (["q_proj|^" + "k" * MAX_PATTERN], f"longer than {MAX_PATTERN} characters"),
        ([f".*{number}" for number in range(MAX_EXPRESSIONS + 1)], f"at most {MAX_EXPRESSIONS}"),
    ],
)
def test_a_pattern_that_no_linear_engine_matches_is_refused(patterns: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NamePatterns(patterns)


def test_a_pattern_with_too_many_states_is_refused_when_it_is_matched() -> None:
    patterns = NamePatterns([".*1.{40}!"])
    names = [f"{number:012b}" * 4 for number in range(1 << 12)]
    with pytest.raises(ValueError, match="too complex"):
        [*map(patterns.find, names)]
