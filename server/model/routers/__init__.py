"""Routers: which rows go to which expert, and how the results are combined."""
