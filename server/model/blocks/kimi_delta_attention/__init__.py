"""Kimi delta attention: a gated delta net with a decay for each number of a head's keys."""
