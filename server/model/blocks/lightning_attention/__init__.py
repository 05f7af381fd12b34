"""Lightning attention: linear attention with a constant decay for each head."""
