"""Checkpoints on web servers: ranges of their files as sources."""
