"""The choice of an adapter by cosines, without a model."""

from __future__ import annotations

import numpy as np
import pytest

from server.api.core.choice.nearest_adapter import choose
from server.api.core.choice.profiles import Profile, Vectors, profile_of


def at(*angles: float) -> Vectors:
    """Return vectors at angles in degrees."""
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def profiles() -> dict[str, Profile]:
    """Return those of two adapters: examples at 0 to 20 and at 90 to 110 degrees, and neutral texts at 60."""
    return {"law": profile_of(at(0, 10, 20), at(60)), "code": profile_of(at(90, 100, 110), at(60))}


@pytest.mark.parametrize(("angle", "name"), [(10, "law"), (25, "law"), (60, None), (85, "code"), (200, None)])
def test_the_nearest_adapter_is_chosen_if_it_is_near_enough(angle: float, name: str | None) -> None:
    assert choose(at(angle)[0], profiles()).name == name


def test_scores_are_probabilities_and_the_chosen_one_has_the_highest() -> None:
    for angle in range(0, 360, 7):
        choice = choose(at(angle)[0], profiles())
        assert choice.scores.keys() == {"law", "code", None}
        assert sum(choice.scores.values()) == pytest.approx(1)
        assert choice.scores[choice.name] == max(choice.scores.values())


def test_a_threshold_of_zero_is_that_of_neutral_texts_and_of_one_that_of_the_examples() -> None:
    law = {"law": profile_of(at(0, 10, 20), at(60))}
    assert choose(at(59)[0], law, 0.0).name == "law"
    assert choose(at(61)[0], law, 0.0).name is None
    assert choose(at(15)[0], law, 1.0).name == "law"
    assert choose(at(30)[0], law, 1.0).name is None


@pytest.mark.parametrize("examples", [at(10), at(10, 10), at(0, 180), at(0, 120, 240)])
def test_a_prompt_that_is_the_only_example_is_always_near_enough(examples: Vectors) -> None:
    """Examples may be alike or have nothing in common: no number divides by zero."""
    profile = profile_of(examples, at(60))
    assert np.isfinite(profile.cosine_at(0.5))
    assert choose(profile.centre, {"law": profile}).name in ("law", None)
    if len(examples) == 1:
        assert choose(examples[0], {"law": profile}).name == "law"


def test_one_example_beside_neutral_texts_of_almost_the_same_direction_is_still_chosen() -> None:
    profile = profile_of(at(10), at(10.5, 11))
    assert choose(at(10)[0], {"law": profile}).name == "law"


def test_a_prompt_without_text_and_a_list_without_adapters_choose_the_base_model() -> None:
    assert choose(None, profiles()).scores == {None: 1.0}
    assert choose(at(10)[0], {}).name is None
