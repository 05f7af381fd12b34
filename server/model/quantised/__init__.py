"""Checkpoints that come quantised: which tensors make up a matrix, and what of them lies in a slot."""
