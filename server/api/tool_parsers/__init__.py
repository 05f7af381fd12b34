"""Parsers of tool calls and reasoning; ``model_families`` maps each model family to its format."""
