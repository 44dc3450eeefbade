"""Where `stagecli sample` writes: a folder of audio files with a samples.jsonl beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stagecli.errors import Problem, StageError
from stagecli.files import JsonRow, read_json_lines, write_atomic
from stagecli.generate.pipeline import SamplerSettings


def is_single_file(output: Path | None) -> bool:
    """Whether --output names one WAV file rather than a folder."""
    return output is not None and output.suffix.lower() == ".wav"


def make_folder(output: Path | None, run_dir: Path, checkpoint: Path, kind: str) -> Path:
    """Create the folder to write to; by default one in the run's samples/.

    kind: `prompts` or `restored`, for the default name. Raises StageError.
    """
    if output is None:
        folder = run_dir / "samples" / f"{checkpoint.name}_{kind}"
    elif is_single_file(output):
        folder = output.parent
    else:
        folder = output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StageError(
            "cannot write the samples", problems=[Problem(str(folder), str(error))]
        ) from error
    return folder


def provenance(settings: SamplerSettings, seed: int, run_dir: Path, checkpoint: Path) -> JsonRow:
    """What a row of samples.jsonl records about how its file was made."""
    options: dict[str, Any] = asdict(settings)
    options.pop("batch_size")  # has no effect on the result
    return {"seed": seed, **options, "run": str(run_dir), "checkpoint": checkpoint.name}


def write_rows(folder: Path, rows: Sequence[JsonRow]) -> list[JsonRow]:
    """Write samples.jsonl, keeping the rows of other files; the new rows, with `file` added.

    `path` in a row is relative to the folder, `file` includes it.
    """
    path = folder / "samples.jsonl"
    replaced = {row["path"] for row in rows}
    earlier = [row for _, row in read_json_lines(path)] if path.exists() else []
    kept = [row for row in earlier if row["path"] not in replaced]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in [*kept, *rows]]
    write_atomic(path, "".join(lines))
    return [{**row, "file": str(folder / row["path"])} for row in rows]
