"""Differences of two scored checkpoints, over the clips that both have."""

from __future__ import annotations

from dataclasses import dataclass

from stagecli.errors import counted
from stagecli.evaluate.averages import score_differences
from stagecli.evaluate.job import Scores
from stagecli.evaluate.sets import set_differences
from stagecli.evaluate.titles import document_title
from stagecli.files import JsonRow


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One scored checkpoint of a run: its document, and the scores it was made from."""

    document: JsonRow
    scores: Scores


def compare_outcomes(a: Outcome, b: Outcome) -> JsonRow:
    """b - a, paired over shared clips: {"a", "b", "rows", "notes"}; notes: what is left out."""
    rows: list[JsonRow] = []
    obstacle = _obstacle(a.document, b.document)
    notes = [obstacle] if obstacle else []
    if not obstacle:
        for setting, scores in a.scores.by_clip.items():
            other = b.scores.by_clip.get(setting, {})
            shared = sum(key in other for key in scores)
            if shared < len(scores) or shared < len(other):
                notes.append(
                    f"{setting}: {counted(shared, 'clip is', 'clips are')} in both, of "
                    f"{len(scores)} and {len(other)}"
                )
            if not shared:
                continue
            row: JsonRow = {
                "system": "samples" if a.scores.samples else "model",
                "n": shared,
                "metrics": score_differences(scores, other, a.document["seed"]),
            }
            if a.scores.samples:
                notes += _add_set_differences(row["metrics"], a, b)
            else:
                row["cutoff"] = float(setting.partition(" ")[0])
            rows.append(row)
    return {
        "a": document_title(a.document),
        "b": document_title(b.document),
        "rows": rows,
        "notes": notes,
    }


def _obstacle(a: JsonRow, b: JsonRow) -> str | None:
    """Why two documents cannot be compared at all; None if they can."""
    if a["task"] != b["task"]:
        return f"{a['task']} runs and {b['task']} runs have no metric in common"
    if a["sample_rate"] != b["sample_rate"]:
        return f"figures at {a['sample_rate']} Hz and at {b['sample_rate']} Hz are not comparable"
    return None


def _add_set_differences(metrics: JsonRow, a: Outcome, b: Outcome) -> list[str]:
    """Add differences of distances if both have the same prompts and judge; returns notes."""
    notes = []
    reference = a.scores.reference
    if a.document["judge"] != b.document["judge"]:
        notes.append("the runs were judged by different encoders: no difference of distances")
    elif list(a.scores.by_clip["samples"]) == list(b.scores.by_clip["samples"]):
        assert reference and a.scores.samples and b.scores.samples
        metrics |= set_differences(
            reference,
            a.scores.samples,
            b.scores.samples,
            a.document["seed"],
            names=a.document["conventions"],
        )
    return [*notes, "no interval is given for differences of the other metrics of sets"]
