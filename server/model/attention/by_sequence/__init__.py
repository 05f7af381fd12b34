"""Attention modules that run sequence by sequence, with what they keep of each token in the KV cache."""
