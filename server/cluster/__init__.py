"""Replicas of a server on several machines. Ray is imported by no module of the choice of a replica."""
