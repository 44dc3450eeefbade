"""Scores of pairs of files, of any of the systems of super-resolution, kept in a ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from stagecli.data.cache import Progress
from stagecli.data.file_index import stamp_of
from stagecli.errors import Problem, StageError, among
from stagecli.evaluate.folder_files import MAX_LISTED, FilePair, Gains, read_ungained
from stagecli.evaluate.ledger import Ledger, SystemScores
from stagecli.evaluate.pairs import PairSettings, score_pair
from stagecli.evaluate.workers import Workers
from stagecli.metrics.baselines import copy_up
from stagecli.metrics.checks import check_pair, pair_warnings, trim_tails
from stagecli.metrics.gain import apply_gain, pair_gain

GENERATED = "pair"  # a generated file against its reference; the ledger's name for it
UNPROCESSED = "unprocessed"  # a low-resolution input against its reference
COPY_UP = "copy-up"  # the same with its band copied upward
FACTS = ("gain", "whole_gain", "delay", "peak", "reference_peak")


def entry_contents(metrics: Sequence[str]) -> dict[str, Sequence[str]]:
    """What an entry of the ledger must have."""
    return {"scores": metrics, "doubts": (), "facts": FACTS}


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


@dataclass(frozen=True, kw_only=True)
class FileScorer:
    """Scores pairs of files, one at a time; matched: in gain; gains: of files that were turned down
    for listening. Other processes receive it, so it holds no more than that."""

    settings: PairSettings
    matched: bool
    gains: Gains

    def key(self, pair: FilePair) -> str:
        """Identifies the pair and everything about it that its scores depend on."""
        files = (pair.reference, pair.generated)
        stamps = [[str(file.resolve()), *stamp_of(file)] for file in files]
        undone = [self.gains[file] for file in files if file in self.gains]
        return json.dumps([*stamps, *undone])

    def score(self, system: str, pair: FilePair) -> PairResult:
        """Raises ValueError if the pair cannot be scored."""
        # The two clips, of one length where they are compared sample by sample.
        rate = self.settings.sample_rate
        target = torch.from_numpy(read_ungained(pair.reference, rate, self.gains))
        audio = torch.from_numpy(read_ungained(pair.generated, rate, self.gains))
        if system == COPY_UP:
            audio = copy_up(audio, rate, self.settings.cutoff)
        trimmed = trim_tails(target, audio, rate)
        check_pair(*trimmed, rate)

        # Levels, and what is doubtful about them.
        gain = pair_gain(*trimmed, rate, self.settings.cutoff)
        warnings = pair_warnings(*trimmed, gain)
        peak = float(audio.abs().max())
        if self.matched:
            audio = apply_gain(audio, gain.kept)
            warnings = tuple(line for line in warnings if not line.startswith("level:"))
        return PairResult(
            scores=score_pair(target.numpy(), audio.numpy(), self.settings),
            warnings=warnings,
            gain=gain.kept,
            whole_gain=gain.whole,
            delay=gain.delay,
            peak=peak,
            reference_peak=float(target.abs().max()),
        )


@dataclass(frozen=True, kw_only=True)
class PairScoring:
    """How pairs are scored; ledger: has, and receives, the scores of each."""

    scorer: FileScorer
    workers: Workers
    ledger: Ledger
    progress: Progress

    def score(self, pairs: Sequence[FilePair], system: str = GENERATED) -> list[PairResult]:
        """One result per pair, in order. Raises StageError naming those that cannot be scored."""
        keys = [self.scorer.key(pair) for pair in pairs]
        pending = {
            key: pair
            for key, pair in zip(keys, pairs, strict=True)
            if self.ledger.get(system, key) is None
        }
        done = len(pairs) - len(pending)
        problems = []
        results = self.workers.map(partial(self.scorer.score, system), pending.values())
        for (key, pair), result in zip(pending.items(), results, strict=True):
            if isinstance(result, ValueError):
                problems.append(Problem(str(pair.generated), str(result)))
            else:
                self.ledger.put(system, key, result.to_ledger())
            done += 1
            self.progress(f"scoring {system}", done, len(pairs))
        if problems:
            raise StageError(
                f"{among(len(problems), len(pairs), 'pair')} cannot be scored",
                problems=problems[:MAX_LISTED],
            )
        entries = [self.ledger.get(system, key) for key in keys]
        return [PairResult.from_ledger(entry) for entry in entries if entry is not None]
