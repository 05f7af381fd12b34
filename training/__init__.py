"""Training of the bundled model, its adapters, its variant and its gate; the results are in ``server/demo``."""
