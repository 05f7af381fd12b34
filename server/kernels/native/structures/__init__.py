"""ctypes mirrors of the structures and enumerations in ``src``; ``mirrors.py`` compares them with the library."""
