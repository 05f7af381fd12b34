"""Chooses the adapter whose examples a prompt is most like, or the base model if it is like none."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.api.core.choice.profiles import Profile

# Half the way from neutral texts to the examples' own likeness: a prompt beyond it is nearer to the examples.
DEFAULT_THRESHOLD = 0.5
TEMPERATURE = 0.1  # of the scores, in units of that way


@dataclass(frozen=True)
class Choice:
    """The outcome of a comparison.

    Args:
        name: of the adapter; None for the base model.
        scores: a probability for each adapter, and as None for the base model.
        reason: a sentence.

    """

    name: str | None
    scores: Mapping[str | None, float]
    reason: str


def choose(
    prompt: npt.NDArray[np.float32] | None, profiles: Mapping[str, Profile], threshold: float | None = None
) -> Choice:
    """Choose for a prompt.

    The adapter with the highest cosine is chosen if the prompt is near enough to it. Scores are a softmax over the
    cosines, in which the base model has the cosine that the best adapter must reach.

    Args:
        prompt: its vector ``(hidden,)`` of length 1; None if it has no text.
        profiles: those of the adapters by name.
        threshold: the nearness that is enough, see ``Profile.cosine_at``.

    """
    if prompt is None:
        return Choice(None, {None: 1.0}, "The prompt has no text to compare with the examples of adapters.")
    if not profiles:
        return Choice(None, {None: 1.0}, "No adapter takes part in routing any more.")
    names = [*profiles]
    centres = np.stack([each.centre for each in profiles.values()])  # (adapters, hidden)
    cosines: npt.NDArray[np.float64] = (centres @ prompt).astype(np.float64)
    best = names[int(cosines.argmax())]
    profile, cosine = profiles[best], float(cosines.max())
    needed = profile.cosine_at(DEFAULT_THRESHOLD if threshold is None else threshold)
    is_near = cosine >= needed
    logits = np.append(cosines, needed) / (profile.spread * TEMPERATURE)
    weights = np.exp(logits - logits.max())
    scores = dict(zip([*names, None], (weights / weights.sum()).tolist(), strict=True))
    compared = f"the cosine with the examples of {best!r} is {cosine:.3f}"
    if is_near:
        return Choice(best, scores, f"The prompt is most like them: {compared}, and {needed:.3f} is enough.")
    return Choice(None, scores, f"No adapter is near enough: {compared}, the highest, but {needed:.3f} is needed.")
