"""The place of a mixer in a layer that has none."""
