"""Prediction of experts, and reads of them ahead of use."""
