"""Grouped-query attention over paged keys and values."""
