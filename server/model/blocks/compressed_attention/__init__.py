"""Attention to the keys of the last tokens and to compressed keys of all that came before (DeepSeek-V4)."""
