"""Stage-aware training of audio diffusion models."""

__version__ = "0.1.0"
