"""Recordings beside the samples of a run: what a prompt sounds like in the data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from stagecli.data.examples import cut
from stagecli.data.rows import Clip
from stagecli.errors import StageError
from stagecli.files import JsonRow
from stagecli.generate.listening import write_listening
from stagecli.train.prepare import Prepared

__all__ = ["with_references"]

FOLDER = "reference"  # beside the folders of the steps, which share it


def with_references(prepared: Prepared, folder: Path, rows: Sequence[JsonRow]) -> list[JsonRow]:
    """Rows of samples.jsonl with the recording of each prompt that is a validation caption.

    `reference`: the start of the clip, as long as a crop, as a path relative to `folder`. It is
    written once for all steps. `no_reference`: why it could not be read. Raises OSError.
    """
    clips: dict[str, Clip] = {}
    for clip in prepared.valid:
        clips.setdefault(clip.caption, clip)
    return [
        {**row, **_reference(prepared, folder, clips[row["prompt"]])}
        if row["prompt"] in clips
        else row
        for row in rows
    ]


def _reference(prepared: Prepared, folder: Path, clip: Clip) -> JsonRow:
    name = hashlib.sha256(clip.caption.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    path = folder.parent / FOLDER / f"{name}.wav"
    if not path.exists():
        try:
            audio_N, _ = cut(prepared.source.read(clip), 0, prepared.num_samples)
        except StageError as error:
            reasons = [error.message, *(problem.what for problem in error.problems)]
            return {"no_reference": f"{clip.key}: {', '.join(reasons)}"}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_listening(path, audio_N, prepared.recipe.data.sample_rate)
    return {"reference": f"../{FOLDER}/{path.name}"}
