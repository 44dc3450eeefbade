"""The part of a caption that the byte encoder reads. No torch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple


class Kept(NamedTuple):
    """The part of a caption that the network reads: equal parts are one condition."""

    part: Hashable
    is_cut: bool


def kept_bytes(captions: Sequence[str], max_length: int) -> list[Kept]:
    """The part of each caption that `text.byte_ids` keeps."""
    encoded = [caption.encode("utf-8") for caption in captions]
    most = max_length - 1
    return [Kept(text[:most], len(text) > most) for text in encoded]
