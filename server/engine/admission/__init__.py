"""Admission of decoding sequences to a step while the experts of all of them do not fit the cache."""
