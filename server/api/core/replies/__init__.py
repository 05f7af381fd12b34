"""Replies: the assistant's turn encoded as a whole or as a stream, usage, and kept responses."""
