"""The one exception of decoders. No torch."""


class UndecodableError(Exception):
    """Audio that cannot be decoded, or not to its end; the message is the problem."""
