"""Mamba: a selective scan of each channel, with a convolution before it and a gate after it."""
