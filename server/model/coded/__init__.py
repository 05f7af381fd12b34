"""Codes weights in bfloat16 as the same weights in fewer bytes."""
