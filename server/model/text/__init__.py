"""Tokenizers and chat templates: text to tokens, tokens to bytes, conversations to text."""
