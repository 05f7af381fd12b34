"""Reads quantised checkpoints: finds the tensors of each matrix, and converts them to the tensors of a slot."""
