"""Tests of the choice of a replica."""
