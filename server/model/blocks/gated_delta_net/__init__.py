"""Gated delta net: a recurrence by the delta rule, with a convolution before it and gates after it."""
