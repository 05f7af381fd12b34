"""Limits of steps that the memory planner knows too."""

# Limit of a step if logits of prompt tokens are requested, because a row has the size of the vocabulary.
MAX_LOGITS_ROWS = 64
