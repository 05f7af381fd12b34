"""Errors that clients see, and the sentences for invalid bodies."""
