"""Pieces that kinds of mixers with recurrent states share."""
