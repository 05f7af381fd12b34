"""JSON read and encoded in short calls, so that other threads run meanwhile."""
