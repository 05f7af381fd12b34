"""Models that run one sequence at a time, with transformers' own attention and cache."""
