"""Coverage-guided fuzzing of what reads files and bodies of requests."""
