"""JSON schemas and grammars of structured output: checked, rewritten, compiled."""
