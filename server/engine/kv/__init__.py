"""Bookkeeping of KV cache blocks. Torch-free."""
