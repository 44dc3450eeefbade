"""The data of a run before its first step: reported, and compared with what it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stagecli.condition.captions import kept_bytes
from stagecli.condition.text import PretrainedText
from stagecli.data.cache import Progress
from stagecli.data.fingerprint import Difference, Fingerprint, differences, fingerprint
from stagecli.data.open import open_source
from stagecli.data.report import CutCaptions, DataReport, Expectations, data_report
from stagecli.data.report_cache import report_once
from stagecli.data.rows import Split
from stagecli.data.source import Source
from stagecli.errors import Problem, StageError
from stagecli.runs.data_file import read_fingerprint, write_data_file
from stagecli.schema import Recipe
from stagecli.stage.base import Event

SPLITS: tuple[Split, ...] = ("train", "valid")  # what training reads


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """prints: the clips; event: what the run should record about them, if anything."""

    report: DataReport
    prints: Fingerprint
    event: Event | None = None


def open_training_data(recipe: Recipe, progress: Progress, cache_dir: Path | None = None) -> Source:
    """The clips that training reads, all of them checked.

    cache_dir: where checks are remembered; default: `data.cache_dir`. Raises StageError with every
    problem.
    """
    return open_source(
        recipe.data,
        need_captions=recipe.condition.text != "none",
        base=Path.cwd(),
        splits=SPLITS,
        seed=recipe.train.seed,
        cache_dir=cache_dir,
        progress=lambda done, total: progress("checking audio", done, total),
    )


def examine(
    recipe: Recipe,
    source: Source,
    text: PretrainedText | None,
    progress: Progress,
    cache_dir: Path | None = None,
) -> DataCheck:
    """Report on the data. cache_dir: as above. Raises StageError for what cannot be meant."""
    _check_evaluation(recipe, len(source.clips("valid")))
    prints = fingerprint(
        source,
        SPLITS,
        with_captions=recipe.condition.text != "none",
        progress=lambda done, total: progress("hashing audio", done, total),
    )
    expected = Expectations(
        sample_rate=recipe.data.sample_rate,
        restores=recipe.task.kind == "sr",
        narrow=recipe.data.narrow,
        cut=_cut(recipe, text),
        max_length=recipe.condition.max_length,
    )
    report = report_once(
        source,
        SPLITS,
        expected,
        cut=text.tokenizer_hash() if text is not None else recipe.condition.text,
        cache_dir=cache_dir or Path(recipe.data.cache_dir),
        compute=lambda: data_report(
            source,
            prints,
            expected,
            progress=lambda done, total: progress("measuring bandwidth", done, total),
        ),
    )
    return DataCheck(report=report, prints=prints)


def _check_evaluation(recipe: Recipe, valid_clips: int) -> None:
    """Raise StageError if evaluations while training would have too few clips for a distance."""
    if recipe.task.kind == "t2a" and recipe.train.evaluate_every and valid_clips < 2:
        raise StageError(
            "the valid split cannot be evaluated while training",
            problems=[Problem("valid", "has one clip: distances compare sets of clips")],
            hint="give it more clips, or set train.evaluate_every = 0",
        )


def compare(check: DataCheck, run_dir: Path, *, accept: bool) -> DataCheck:
    """The check with its event, after comparing with the data that the run was trained on.

    A new run stores what it is trained on. accept: go on with other data. Raises StageError, with
    the differences, where the data have changed and `accept` is False.
    """
    event = None
    try:
        before = read_fingerprint(run_dir)
    except StageError as error:
        if not accept:
            raise
        before = None
        event = _event("unreadable", f"accepted without a comparison: {error.problems[0].what}")
    changes = differences(before, check.prints) if before is not None else []
    if changes and not accept:
        raise StageError(
            f"the data of {run_dir} have changed since it was trained on them",
            problems=[change.problem() for change in changes],
            hint="restore the data; or train under another name with --name; "
            "or go on with the data as they are: --accept-data",
        )
    if changes:
        event = _event("changed", f"changed data accepted: {_text(changes)}", changes)
    elif before is None and event is None and (run_dir / "codec.safetensors").exists():
        event = _event("unknown", "an earlier version did not record the data: not compared")
    if before is None or changes:
        write_data_file(run_dir, check.prints, check.report)
    return DataCheck(report=check.report, prints=check.prints, event=event)


def _cut(recipe: Recipe, text: PretrainedText | None) -> CutCaptions | None:
    """How the recipe's text condition cuts captions; None where it reads none."""
    if text is not None:
        return text.kept
    if recipe.condition.text == "bytes":
        return partial(kept_bytes, max_length=recipe.condition.max_length)
    return None


def _event(before: str, reason: str, changes: list[Difference] | None = None) -> Event:
    evidence = {f"{change.split} {change.change}": change.keys[:100] for change in changes or ()}
    return Event(
        mechanism="data", before=before, after="accepted", reason=reason, evidence=evidence
    )


def _text(changes: list[Difference]) -> str:
    return "; ".join(f"{change.split}: {change.text()}" for change in changes)
