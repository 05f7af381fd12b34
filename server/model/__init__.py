"""Models from transformers, with paged experts and KV cache."""
