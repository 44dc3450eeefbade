"""Two folders of audio from anywhere -> a document of scores."""

from __future__ import annotations

from collections.abc import Callable

from stagecli import __version__
from stagecli.data.cache import Progress
from stagecli.evaluate.flags import Flags, check_folder_flags
from stagecli.evaluate.folder_pairs import score_folder_pairs
from stagecli.evaluate.folder_sets import score_folder_sets
from stagecli.files import JsonRow, finite
from stagecli.runs.directory import command_line, environment


def evaluate_folders(
    flags: Flags,
    *,
    progress: Progress = lambda title, done, total: None,
    warn: Callable[[str], None] = lambda line: None,
) -> JsonRow:
    """Score two folders: pairs of files of the same name for sr, two sets of files for t2a.

    One clip, or one pair, is in memory at a time. Whatever makes a number doubtful (silence,
    clipping, peak normalisation, level) is passed to `warn` and kept in the document.
    Raises StageError. sr: names, lengths, rates or numbers of channels differ; t2a: rates differ.
    """
    # Refuse flags that do not fit.
    check_folder_flags(flags)
    assert flags.reference and flags.generated
    notes: list[str] = []

    def keep_and_warn(line: str) -> None:
        notes.append(line)
        warn(line)

    # Score, and put the document together.
    score = score_folder_pairs if flags.task == "sr" else score_folder_sets
    scores = score(flags, flags.reference, flags.generated, progress, keep_and_warn)
    return finite(
        {
            "task": flags.task,
            "reference": str(flags.reference),
            "generated": str(flags.generated),
            "clips": scores.row["n"],
            **scores.facts,
            "conventions": scores.conventions,
            "rows": [
                *scores.baselines,
                {
                    "system": flags.generated.name or str(flags.generated),
                    "kind": "generated",
                    **scores.row,
                },
            ],
            **({"files": list(scores.files)} if scores.files else {}),
            "notes": notes,
            "settings": {**scores.facts, "version": __version__},
            "command": " ".join(command_line()),
            "environment": environment(),
        }
    )
