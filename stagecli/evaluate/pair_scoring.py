"""Scores of pairs of files, of any of the systems of super-resolution, kept in a ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from stagecli.data.cache import Progress
from stagecli.data.file_index import stamp_of
from stagecli.errors import Problem, StageError, among
from stagecli.evaluate.folder_files import MAX_LISTED, FilePair, Gains, read_ungained
from stagecli.evaluate.ledger import Ledger, SystemScores
from stagecli.evaluate.pairs import SR_METRICS, PairSettings, score_pair
from stagecli.metrics.baselines import copy_up
from stagecli.metrics.checks import check_pair, pair_warnings, trim_tails
from stagecli.metrics.gain import apply_gain, pair_gain

GENERATED = "pair"  # a generated file against its reference; the ledger's name for it
UNPROCESSED = "unprocessed"  # a low-resolution input against its reference
COPY_UP = "copy-up"  # the same with its band copied upward
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


@dataclass(frozen=True, kw_only=True)
class PairScoring:
    """How pairs are scored: matched: in gain; gains: of files that were turned down for listening;
    ledger: has, and receives, the scores of each pair."""

    settings: PairSettings
    matched: bool
    gains: Gains
    ledger: Ledger
    progress: Progress

    def score(self, pairs: Sequence[FilePair], system: str = GENERATED) -> list[PairResult]:
        """One result per pair. Raises StageError naming those that cannot be scored."""
        results = []
        problems = []
        for done, pair in enumerate(pairs, 1):
            files = (pair.reference, pair.generated)
            stamps = [[str(file.resolve()), *stamp_of(file)] for file in files]
            undone = [self.gains[file] for file in files if file in self.gains]
            key = json.dumps([*stamps, *undone])
            entry = self.ledger.get(system, key)
            try:
                if entry is None:
                    entry = self._score_files(pair, system).to_ledger()
                    self.ledger.put(system, key, entry)
                results.append(PairResult.from_ledger(entry))
            except ValueError as error:
                problems.append(Problem(str(pair.generated), str(error)))
            self.progress(f"scoring {system}", done, len(pairs))
        if problems:
            raise StageError(
                f"{among(len(problems), len(pairs), 'pair')} cannot be scored",
                problems=problems[:MAX_LISTED],
            )
        return results

    def _score_files(self, pair: FilePair, system: str) -> PairResult:
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
