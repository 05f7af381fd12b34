"""The C interface in Python, which ``src/interface.py`` writes; ``fields.py`` alone is written by hand."""
