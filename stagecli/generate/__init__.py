"""Generation with trained runs: prompts or files -> audio files."""
