"""Fuzzing of the numbers of configs: each family's config.json and each GGUF architecture's header."""
