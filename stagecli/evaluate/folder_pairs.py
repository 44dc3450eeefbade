"""Super-resolution folders: every file against the file of the same name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from stagecli import __version__
from stagecli.data.cache import Progress
from stagecli.evaluate.averages import average_scores
from stagecli.evaluate.chosen import chosen_metrics
from stagecli.evaluate.clip_warnings import ClipWarnings
from stagecli.evaluate.flags import Flags, check_cutoffs
from stagecli.evaluate.folder_files import FolderPairs, FolderScores, pair_folders, read_gains
from stagecli.evaluate.ledger import fingerprint, open_ledger
from stagecli.evaluate.pair_scoring import (
    COPY_UP,
    GENERATED,
    UNPROCESSED,
    FileScorer,
    PairResult,
    PairScoring,
    entry_contents,
)
from stagecli.evaluate.pairs import PERCEPTUAL, PairSettings, audible_metrics, pair_conventions
from stagecli.evaluate.workers import Workers, open_workers
from stagecli.files import JsonRow
from stagecli.schema import Evaluate


def score_folder_pairs(
    flags: Flags,
    reference: Path,
    generated: Path,
    progress: Progress,
    warn: Callable[[str], None],
) -> FolderScores:
    """Mean scores over the pairs, and those of every pair, which are kept in the cache.

    With low-resolution inputs, their own scores and those of copy-up come first. Raises StageError:
    files that do not pair up, a cutoff above the Nyquist frequency, pairs that cannot be scored.
    """
    # Pair the files, and choose the metrics.
    folders = pair_folders(reference, generated, progress, warn)
    inputs = pair_folders(reference, flags.input, progress, warn) if flags.input else None
    settings = _pair_settings(flags, folders.sample_rate, warn)
    facts: JsonRow = {
        "sample_rate": folders.sample_rate,
        "cutoff": settings.cutoff,
        "preset": settings.preset,
        "perceptual": [name for name in settings.names if name in PERCEPTUAL],
        "gain_matched": flags.match_gain,
        **({"metrics": list(settings.names)} if flags.metrics else {}),
    }

    # Score the pairs, the baselines first.
    name = generated.name or str(generated)
    systems = {(name, "generated"): folders}
    if inputs:
        systems = {(UNPROCESSED, "baseline"): inputs, (COPY_UP, "baseline"): inputs, **systems}
    rows: list[JsonRow] = []
    files: list[JsonRow] = []
    with open_workers(settings.names) as workers:
        scoring = _scoring(flags, folders, settings, facts, workers, progress=progress, warn=warn)
        for (system, kind), paired in systems.items():
            results = scoring.score(paired.pairs, GENERATED if kind == "generated" else system)
            rows.append(_mean_row(system, kind, settings, results))
            files += _file_rows(system, kind, settings, paired, results)

    # What a reader must know beside the numbers.
    _warn_about_clips(folders, results, generated, warn)
    conventions = pair_conventions(settings.preset, settings.names)
    if flags.match_gain:
        warn(_gain_summary(results))
        conventions = {
            name: text.replace("gain not matched", "gain matched")
            for name, text in conventions.items()
        }
    return FolderScores(
        facts=facts, conventions=conventions, row=rows[-1], baselines=rows[:-1], files=files
    )


def _scoring(
    flags: Flags,
    folders: FolderPairs,
    settings: PairSettings,
    facts: JsonRow,
    workers: Workers,
    *,
    progress: Progress,
    warn: Callable[[str], None],
) -> PairScoring:
    """How these pairs are scored, with the scores that earlier calls left in the cache."""
    key = fingerprint({**facts, "gains": "of the kept band", "version": __version__})
    path = flags.cache_dir / "pairs" / f"{key}.clips.jsonl"
    ledger = open_ledger(path, entry_contents(settings.names))
    for line in ledger.damage_notice():
        warn(line)
    assert flags.reference and flags.generated
    gains = {
        **read_gains(flags.reference, [pair.reference for pair in folders.pairs], warn),
        **read_gains(flags.generated, [pair.generated for pair in folders.pairs], warn),
    }
    return PairScoring(
        scorer=FileScorer(settings=settings, matched=flags.match_gain, gains=gains),
        workers=workers,
        ledger=ledger,
        progress=progress,
    )


def _mean_row(
    system: str, kind: str, settings: PairSettings, results: Sequence[PairResult]
) -> JsonRow:
    """The means over all pairs."""
    averages = average_scores([result.scores for result in results], 0)
    return {"system": system, "kind": kind, "cutoff": settings.cutoff, **averages}


def _file_rows(
    system: str,
    kind: str,
    settings: PairSettings,
    folders: FolderPairs,
    results: Sequence[PairResult],
) -> list[JsonRow]:
    """A row per pair, in the form of the rows of means."""
    return [
        {
            "system": system,
            "kind": kind,
            "cutoff": settings.cutoff,
            "file": str(pair.generated),
            "reference": str(pair.reference),
            "n": 1,
            "gain": result.gain,
            "whole_gain": result.whole_gain,
            "delay": result.delay,
            "metrics": {name: {"value": value} for name, value in result.scores.items()},
        }
        for pair, result in zip(folders.pairs, results, strict=True)
    ]


def _pair_settings(flags: Flags, rate: int, warn: Callable[[str], None]) -> PairSettings:
    cutoff = flags.cutoffs[0]
    preset = flags.convention or Evaluate().preset
    check_cutoffs([cutoff], rate, preset)
    chosen, warnings = audible_metrics([cutoff], rate, chosen_metrics(flags, "sr"))
    for line in warnings:
        warn(line)
    return PairSettings(
        sample_rate=rate,
        cutoff=cutoff,
        preset=preset,
        names=chosen[cutoff],
    )


def _warn_about_clips(
    folders: FolderPairs,
    results: Sequence[PairResult],
    generated: Path,
    warn: Callable[[str], None],
) -> None:
    """Warn about what makes the numbers doubtful."""
    clip_warnings = ClipWarnings(str(generated), len(folders.pairs))
    for pair, result in zip(folders.pairs, results, strict=True):
        clip_warnings.add(pair.generated, result.warnings, result.peak, result.reference_peak)
    if folders.channels > 1:
        warn(f"{folders.channels} channels: the mean of the channels is scored on both sides")
    for line in clip_warnings.lines():
        warn(line)
    if clip_warnings.has_level():
        warn("levels differ: --match-gain scales each clip onto its reference first")


def _gain_summary(results: Sequence[PairResult]) -> str:
    kept = _range_text([result.gain for result in results])
    whole = _range_text([result.whole_gain for result in results if result.whole_gain > 0])
    return (
        "gain matched: each generated clip was scaled onto its reference by least squares over "
        f"the kept band, without its delay ({kept}); sample by sample over the whole band it would "
        f"have been {whole}"
    )


def _range_text(gains: Sequence[float]) -> str:
    if not gains:
        return "not positive"
    decibel = 20 * np.log10(gains)
    return f"median {np.median(decibel):+.2f} dB, {decibel.min():+.2f} to {decibel.max():+.2f} dB"
