"""Sampling of token ids from logits: penalties, grammars, filters, random numbers, logprobs."""
