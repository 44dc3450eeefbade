"""A run on low-resolution files of the user's: restored, then scored against their references."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stagecli.data.cache import Progress
from stagecli.data.file_index import stamp_of
from stagecli.evaluate.flags import Flags, check_cutoffs
from stagecli.evaluate.folder_files import FolderPairs, FolderScores, pair_folders
from stagecli.evaluate.folder_pairs import score_folder_pairs
from stagecli.evaluate.job import Scores, ScoresByClip
from stagecli.evaluate.ledger import fingerprint
from stagecli.files import JsonRow, read_json_lines
from stagecli.generate.listening import LISTING
from stagecli.generate.output import Destination
from stagecli.generate.restore import restore_files

Say = Callable[[str], None]


def score_inputs(
    run_dir: Path,
    checkpoint: str,
    flags: Flags,
    settings: Mapping[str, Any],
    *,
    preset: str,
    progress: Progress,
    warn: Say,
    note: Say,
) -> Scores:
    """Rows for the inputs, copy-up and the model; a row per file of each.

    settings: of the sampler, with the seed and what identifies the checkpoint; the restored files
    stay in the run, and are used again while settings and inputs are the same; preset: of LSD, of
    the recipe. Raises StageError, before anything is restored where files do not pair up.
    """
    # Pair the inputs with their references.
    reference = flags.reference
    inputs = flags.input
    assert reference and inputs
    pairs = pair_folders(reference, inputs, progress, lambda line: None)
    cutoff = flags.cutoffs[0]
    check_cutoffs([cutoff], pairs.sample_rate, flags.convention or preset)

    # Restore the files.
    state = fingerprint({**settings, "cutoff": cutoff, "inputs": _stamps(pairs)})
    folder = run_dir / "evals" / f"{checkpoint}_input_{state}_restored"
    if _number_listed(folder) == len(pairs.pairs):
        note(f"using the files restored before, in {folder}")
    else:
        restore_files(
            run_dir,
            inputs,
            Destination(output=folder, force=True, warn=warn, note=note),
            seed=settings["seed"],
            cutoff=cutoff,
            checkpoint=str(int(checkpoint.removeprefix("step_"))),
            progress=lambda done, total: progress("restoring", done, total),
            **{name: settings[name] for name in ("steps", "cfg_scale", "sampler")},
        )

    # Score them.
    stated = None if flags.lsd else flags.preset or preset
    generated = folder if inputs.is_dir() else folder / f"{inputs.stem}.wav"
    of_pairs = replace(flags, generated=generated, preset=stated)
    scores = score_folder_pairs(of_pairs, reference, generated, progress, warn)
    return Scores(
        rows=[*scores.baselines, _of_model(scores.row)],
        files=[_of_model(row) for row in scores.files],
        conventions=dict(scores.conventions),
        settings={**scores.facts, "input": state},
        by_clip={f"{cutoff:g} Hz": _by_clip(scores, reference)},
        head={
            "clips": len(pairs.pairs),
            "reference": str(reference),
            "restored": str(folder),
            "sample_rate": pairs.sample_rate,
        },
    )


def _stamps(pairs: FolderPairs) -> list[Any]:
    return [[str(pair.generated.resolve()), *stamp_of(pair.generated)] for pair in pairs.pairs]


def _number_listed(folder: Path) -> int:
    """Restored files that are there and listed, which they are once they are whole."""
    listing = folder / LISTING
    if not listing.is_file():
        return 0
    rows = [row for _, row in read_json_lines(listing)]
    names = {row["path"] for row in rows if isinstance(row, dict) and "path" in row}
    return sum((folder / name).is_file() for name in names)


def _of_model(row: JsonRow) -> JsonRow:
    """A row of generated files as one of the model."""
    return {**row, "system": "model", "kind": "model"} if row["kind"] == "generated" else row


def _by_clip(scores: FolderScores, reference: Path) -> ScoresByClip:
    """Scores of the model by the name of the reference."""
    return {
        str(Path(row["reference"]).relative_to(reference) if reference.is_dir() else reference): {
            name: metric["value"] for name, metric in row["metrics"].items()
        }
        for row in scores.files
        if row["kind"] == "generated"
    }
