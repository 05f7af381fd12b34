"""Mamba-2: a recurrence with a decay for each head, with a convolution before it and a gated norm after it."""
