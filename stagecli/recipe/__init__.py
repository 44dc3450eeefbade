"""Recipes: TOML files -> checked `schema.Recipe` objects, and back."""
