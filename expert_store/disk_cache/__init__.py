"""A cache on a disk in front of slower sources, shared by the processes of a machine."""
