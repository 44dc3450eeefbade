"""Names of generated files, from prompt and seed; every file system takes them. No torch."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

CHARACTERS = 40  # of a prompt in a name
BYTES = 120  # of these; a whole name may have 255
NO_WORDS = "clip"  # stands for a prompt without letters and digits


def clip_names(prompts: Sequence[str], seeds: Sequence[int], suffix: str) -> list[str]:
    """`a-loud-bell_seed3.wav` for each prompt with its seed; of equal names, the next end in -2."""
    used: Counter[str] = Counter()
    names = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        stem = f"{words_of(prompt)}_seed{seed}"
        # Names that differ in case or in the form of accents are one file on some file systems.
        key = unicodedata.normalize("NFC", stem.casefold())
        used[key] += 1
        number = f"-{used[key]}" if used[key] > 1 else ""
        names.append(f"{stem}{number}{suffix}")
    return names


def words_of(prompt: str) -> str:
    """The letters and digits of a prompt, of any script, in small letters with hyphens between."""
    text = unicodedata.normalize("NFC", prompt.lower())
    kept = "".join(character if _fits(character) else " " for character in text)
    words = re.sub(" +", "-", kept.strip())[:CHARACTERS]
    words = words.encode()[:BYTES].decode(errors="ignore").strip("-")
    return words or NO_WORDS


def _fits(character: str) -> bool:
    """Letters, their marks and digits; FAT knows no characters beyond U+FFFF."""
    return unicodedata.category(character)[0] in "LMN" and character <= "\uffff"
