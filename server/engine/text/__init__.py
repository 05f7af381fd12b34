"""Conversion between text and token ids: codec, detokenisers, stop strings."""
