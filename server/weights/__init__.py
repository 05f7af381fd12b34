"""Weights beside the base model's, by the names under which requests ask for them: adapters come and go here."""
