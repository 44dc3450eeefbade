"""Metrics: pure functions of audio or embeddings, and the registry of what each number means."""
