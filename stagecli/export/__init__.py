"""Exports a run: a slim folder to hand on, with a model card, and the model hub."""
