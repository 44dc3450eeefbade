"""Draws panels with matplotlib, which is imported inside functions only."""
