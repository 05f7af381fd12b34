"""`greenroom inspect`: a model's size, the part that fits in memory, and an upper bound of its speed."""
