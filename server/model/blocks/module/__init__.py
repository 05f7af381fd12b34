"""A family's own module as the mixer of a layer whose other parts are native."""
