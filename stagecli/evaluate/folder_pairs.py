"""Super-resolution folders: every file against the file of the same name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stagecli import __version__
from stagecli.data.cache import Progress
from stagecli.data.file_index import stamp_of
from stagecli.errors import Problem, StageError, among
from stagecli.evaluate.averages import average_scores
from stagecli.evaluate.clip_warnings import ClipWarnings
from stagecli.evaluate.flags import Flags
from stagecli.evaluate.folder_files import (
    MAX_LISTED,
    FilePair,
    FolderPairs,
    FolderScores,
    Gains,
    pair_folders,
    read_gains,
    read_ungained,
)
from stagecli.evaluate.ledger import Ledger, SystemScores, fingerprint, open_ledger
from stagecli.evaluate.pairs import (
    SR_METRICS,
    PairSettings,
    audible_metrics,
    pair_conventions,
    score_pair,
)
from stagecli.files import JsonRow
from stagecli.metrics.checks import check_pair, pair_warnings, trim_tails
from stagecli.metrics.gain import apply_gain, pair_gain
from stagecli.schema import Evaluate

SETTING = "pair"  # the ledger's

FACTS = ("gain", "whole_gain", "delay", "peak", "reference_peak")
LEDGER = {"scores": SR_METRICS, "doubts": (), "facts": FACTS}  # what an entry must have


@dataclass(frozen=True, kw_only=True)
class PairResult:
    """The scores of one pair.

    gain, whole_gain, delay: of the generated clip, as in `PairGain`; the first is applied with
    --match-gain; peak, reference_peak: largest magnitudes before it.
    """

    scores: Mapping[str, float]
    warnings: Sequence[str]
    gain: float
    whole_gain: float
    delay: float
    peak: float
    reference_peak: float

    def to_ledger(self) -> SystemScores:
        """As an entry of the ledger, which holds numbers only: the warnings become names."""
        facts = {name: getattr(self, name) for name in FACTS}
        return {
            "scores": dict(self.scores),
            "doubts": dict.fromkeys(self.warnings, 1.0),
            "facts": facts,
        }

    @classmethod
    def from_ledger(cls, entry: SystemScores) -> PairResult:
        facts = {name: entry["facts"][name] for name in FACTS}
        return cls(scores=entry["scores"], warnings=list(entry["doubts"]), **facts)


def score_folder_pairs(
    flags: Flags,
    reference: Path,
    generated: Path,
    progress: Progress,
    warn: Callable[[str], None],
) -> FolderScores:
    """Mean scores over the pairs; those of every pair are kept in the cache.

    Raises StageError: files that do not pair up, a cutoff above the Nyquist frequency, pairs that
    cannot be scored.
    """
    # Pair the files, and choose the metrics.
    folders = pair_folders(reference, generated, progress, warn)
    settings = _pair_settings(flags, folders.sample_rate, warn)
    facts: JsonRow = {
        "sample_rate": folders.sample_rate,
        "cutoff": settings.cutoff,
        "preset": settings.preset,
        "perceptual": [name for name in settings.names if name not in SR_METRICS],
        "gain_matched": flags.match_gain,
    }

    # Score the pairs.
    key = fingerprint({**facts, "version": __version__})
    ledger = open_ledger(flags.cache_dir / "pairs" / f"{key}.clips.jsonl", LEDGER)
    for line in ledger.damage_notice():
        warn(line)
    gains = {
        **read_gains(reference, [pair.reference for pair in folders.pairs], warn),
        **read_gains(generated, [pair.generated for pair in folders.pairs], warn),
    }
    results = _score_all(
        folders.pairs,
        settings,
        matched=flags.match_gain,
        gains=gains,
        ledger=ledger,
        progress=progress,
    )

    _warn_about_clips(folders, results, generated, warn)
    conventions = pair_conventions(settings.preset, settings.names)
    if flags.match_gain:
        warn(_gain_summary(results))
        conventions = {
            name: text.replace("gain not matched", "gain matched")
            for name, text in conventions.items()
        }
    averages = average_scores([result.scores for result in results], 0)
    return FolderScores(
        facts=facts, conventions=conventions, row={"cutoff": settings.cutoff, **averages}
    )


def _pair_settings(flags: Flags, rate: int, warn: Callable[[str], None]) -> PairSettings:
    cutoff = flags.cutoffs[0]
    if cutoff >= rate / 2:
        raise StageError(
            f"--cutoff {cutoff:g} Hz is not below half the sample rate, {rate / 2:g} Hz"
        )
    names = [*SR_METRICS]
    if flags.perceptual:
        chosen, warnings = audible_metrics([cutoff], rate)
        names += chosen[cutoff]
        for line in warnings:
            warn(line)
    return PairSettings(
        sample_rate=rate,
        cutoff=cutoff,
        preset=flags.convention or Evaluate().preset,
        names=names,
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


def _score_all(
    pairs: Sequence[FilePair],
    settings: PairSettings,
    *,
    matched: bool,
    gains: Gains,
    ledger: Ledger,
    progress: Progress,
) -> list[PairResult]:
    """One result per pair. Raises StageError naming those that cannot be scored."""
    results = []
    problems = []
    for done, pair in enumerate(pairs, 1):
        files = (pair.reference, pair.generated)
        stamps = [[str(file.resolve()), *stamp_of(file)] for file in files]
        undone = [gains[file] for file in files if file in gains]
        key = json.dumps([*stamps, *undone])
        entry = ledger.get(SETTING, key)
        try:
            if entry is None:
                entry = _score_files(pair, settings, matched, gains).to_ledger()
                ledger.put(SETTING, key, entry)
            results.append(PairResult.from_ledger(entry))
        except ValueError as error:
            problems.append(Problem(str(pair.generated), str(error)))
        progress("scoring pairs", done, len(pairs))
    if problems:
        raise StageError(
            f"{among(len(problems), len(pairs), 'pair')} cannot be scored",
            problems=problems[:MAX_LISTED],
        )
    return results


def _score_files(pair: FilePair, settings: PairSettings, matched: bool, gains: Gains) -> PairResult:
    """Raises ValueError if the pair cannot be scored."""
    rate = settings.sample_rate
    target = torch.from_numpy(read_ungained(pair.reference, rate, gains))
    audio = torch.from_numpy(read_ungained(pair.generated, rate, gains))
    trimmed = trim_tails(target, audio, rate)
    check_pair(*trimmed, rate)
    gain = pair_gain(*trimmed, rate, settings.cutoff)
    warnings = pair_warnings(*trimmed, gain)
    peak = float(audio.abs().max())
    if matched:
        audio = apply_gain(audio, gain.kept)
        warnings = tuple(line for line in warnings if not line.startswith("level:"))
    return PairResult(
        scores=score_pair(target.numpy(), audio.numpy(), settings),
        warnings=warnings,
        gain=gain.kept,
        whole_gain=gain.whole,
        delay=gain.delay,
        peak=peak,
        reference_peak=float(target.abs().max()),
    )


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
