"""Finds out about a model from its config alone: its sizes, and what would run where."""
