"""Hooks that transformers calls for attention and experts, and checks that a model can use them."""
