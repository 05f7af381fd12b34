"""Images in prompts: decode them, turn them into placeholder tokens, and embed them in a step."""
