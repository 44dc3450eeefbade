"""What is in a data set, before training: counts, what is doubtful, and what cannot be meant.

No torch. The facts are computed from clips that a source has checked already; only the bandwidth
is measured here, on some clips of each split.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from stagecli.data.bandwidth import NARROW
from stagecli.data.cache import Count
from stagecli.data.fingerprint import Fingerprint
from stagecli.data.rows import Clip, Split, is_synthesised
from stagecli.data.source import Source
from stagecli.errors import Problem, StageError, among, counted, significant
from stagecli.files import JsonRow

MEASURED = 64  # clips per split whose bandwidth is measured, evenly spaced
MOST = 0.9  # share of narrow clips from which on the sample rate of an sr recipe cannot be meant
SLACK = 1.03  # a resampler's transition band: content may end this much above a Nyquist frequency
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 96000)
SHARES = (0.0, 0.1, 0.5, 0.9, 1.0)  # of the clips below a figure of `spread`
NAMED = 5  # problems listed with an error
EXAMPLES = 3  # clips named in a doubt

MEASURES = {"valid": "validation measures", "test": "evaluation measures"}

CutCaptions = Callable[[Sequence[str]], Sequence[tuple[Hashable, bool]]]
"""Captions -> (the part that the network reads, whether something was cut off) of each."""


@dataclass(kw_only=True)
class DataReport:
    """What is in a data set.

    facts: counts by name, as JSON; doubts: sentences about what may not be meant; refused: what
    cannot be meant; twins: keys of clips with equal content, the later one first.
    """

    facts: JsonRow = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    refused: list[StageError] = field(default_factory=list)
    twins: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Expectations:
    """What a recipe expects of its data.

    sample_rate: Hz; restores: the task restores the band up to half of it (sr); narrow:
    `data.narrow`; cut: None where no captions are read; max_length: `condition.max_length`.
    """

    sample_rate: int
    restores: bool
    narrow: str
    cut: CutCaptions | None
    max_length: int


def data_report(
    source: Source,
    prints: Fingerprint,
    expected: Expectations,
    progress: Count | None = None,
) -> DataReport:
    """`measure`. Raises StageError for what cannot be meant."""
    report = measure(source, prints, expected, progress)
    for error in report.refused:
        raise error
    return report


def measure(
    source: Source,
    prints: Fingerprint,
    expected: Expectations,
    progress: Count | None = None,
) -> DataReport:
    """The report on the splits of `prints`, which is the fingerprint of `source`.

    progress: (clips measured, clips to measure). Refused are captions that all become one by being
    cut, and data to restore that holds nothing to restore.
    """
    # Made once, as each measurement goes over all of them.
    clips = {split: list(source.clips(split)) for split in prints}
    facts = {split: _split_facts(source, of_split) for split, of_split in clips.items()}
    report = DataReport(doubts=list(source.passed_over))
    report.facts = {
        "splits": facts,
        "left_out": len(source.skipped),
        "passed_over": list(source.passed_over),
    }
    _report_peaks(report, clips, source)
    _report_captions(report, clips, expected)
    _report_equal_content(report, prints)
    _report_bandwidth(report, clips, source, expected, progress)
    return report


def _split_facts(source: Source, clips: Sequence[Clip]) -> JsonRow:
    infos = [info for clip in clips if (info := source.info(clip)) is not None]
    rates = Counter(info.sample_rate for info in infos) or {source.sample_rate: len(clips)}
    channels = Counter(info.channels for info in infos) or {1: len(clips)}
    return {
        "clips": len(clips),
        "synthesised": sum(is_synthesised(clip) for clip in clips),
        "hours": round(sum(clip.seconds for clip in clips) / 3600, 4),
        "seconds": spread([clip.seconds for clip in clips], 3),
        "rates": {str(rate): rates[rate] for rate in sorted(rates)},
        "channels": {str(number): channels[number] for number in sorted(channels)},
        "level_db": spread([20 * math.log10(info.rms) for info in infos if info.rms > 0], 1),
    }


def spread(values: Sequence[float], digits: int) -> list[float]:
    """Minimum, 10 %, median, 90 % and maximum of values, rounded; empty where there are none.

    Each is one of the values.
    """
    ordered = sorted(values)
    last = len(ordered) - 1
    return [round(ordered[round(share * last)], digits) for share in SHARES if ordered]


def _report_peaks(
    report: DataReport, clips: Mapping[Split, Sequence[Clip]], source: Source
) -> None:
    for split, of_split in clips.items():
        loud = [
            f"{clip.key}: {significant(info.peak, 3)}"
            for clip in of_split
            if (info := source.info(clip)) is not None and info.peak > 1
        ]
        report.facts["splits"][split]["peaks_over_1"] = len(loud)
        if loud:
            report.doubts.append(f"{split}: {_clips(loud)} with peaks above full scale (1.0)")


def _report_captions(
    report: DataReport, clips: Mapping[Split, Sequence[Clip]], expected: Expectations
) -> None:
    """Count the captions, those that are cut, and those that become equal by it."""
    if expected.cut is None:
        return
    for split, of_split in clips.items():
        # Different captions by the part that is read of them.
        captions = Counter(text for clip in of_split for text in clip.captions if text)
        kept = dict(zip(captions, expected.cut(list(captions)), strict=True))
        by_part: dict[Hashable, list[str]] = {}
        for caption, (part, _) in kept.items():
            by_part.setdefault(part, []).append(caption)
        cut = sum(captions[caption] for caption, (_, is_cut) in kept.items() if is_cut)
        equal = [caption for same in by_part.values() if len(same) > 1 for caption in same]
        report.facts["splits"][split] |= {
            "captions": captions.total(),
            "different_captions": len(captions),
            "captions_cut": cut,
            "captions_made_equal": len(equal),
        }

        # All the same: the network would learn to ignore its prompt.
        limit = f"condition.max_length ({expected.max_length})"
        if split == "train" and len(by_part) == 1 and len(captions) > 1:
            error = StageError(
                f"all {len(captions)} different training captions become one when they are cut",
                problems=[Problem(limit, f"{_short(text)!r} is cut") for text in equal[:NAMED]],
                hint="raise condition.max_length",
            )
            report.refused.append(error)
        elif cut:
            doubt = (
                f"{split}: {among(cut, captions.total(), 'caption', 'is', 'are')} cut at {limit}"
            )
            if equal:
                different = counted(len(equal), "different one becomes", "different ones become")
                doubt += f", and {different} equal to another"
            report.doubts.append(doubt)


def _report_equal_content(report: DataReport, prints: Fingerprint) -> None:
    """Clips whose file is, byte by byte, another's: in one split, and in two."""
    first: dict[tuple[Split, str], str] = {}
    for split, of_split in prints.items():
        twins = []
        for clip in of_split:
            twin = first.setdefault((split, clip.content), clip.key)
            if twin != clip.key:
                twins.append(f"{clip.key} = {twin}")
                report.twins.append((clip.key, twin))
        report.facts["splits"][split]["equal_content"] = len(twins)
        if twins:
            report.doubts.append(f"{split}: {_clips(twins)} with the content of another")

    for split in prints:
        if split == "train":
            continue
        shared = [
            (clip.key, first["train", clip.content])
            for clip in prints[split]
            if ("train", clip.content) in first
        ]
        report.twins += shared
        report.facts[f"equal_in_train_and_{split}"] = len(shared)
        if shared:
            named = _clips([f"{key} = {twin}" for key, twin in shared])
            report.doubts.append(
                f"{named} of the {split} split with the content of a training clip: "
                f"{MEASURES[split]} what was trained on"
            )


def _report_bandwidth(
    report: DataReport,
    clips: Mapping[Split, Sequence[Clip]],
    source: Source,
    expected: Expectations,
    progress: Count | None,
) -> None:
    """Measure some clips of each split; refuse data where there is nothing to restore."""
    in_files = {
        split: [clip for clip in of_split if source.info(clip) is not None]
        for split, of_split in clips.items()
    }
    chosen = [(split, clip) for split in clips for clip in evenly(in_files[split], MEASURED)]
    hertz: dict[Split, list[tuple[float, Clip]]] = {split: [] for split in clips}
    for done, (split, clip) in enumerate(chosen, 1):
        hertz[split].append((source.bandwidth(clip) or 0.0, clip))
        if progress:
            progress(done, len(chosen))
    limit = NARROW * expected.sample_rate / 2
    for split, measured in hertz.items():
        narrow = [f"{clip.key}: {hz:.0f} Hz" for hz, clip in measured if hz < limit]
        report.facts["splits"][split] |= {
            "bandwidths_measured": len(measured),
            "bandwidth_hz": spread([hz for hz, _ in measured], 0),
            "narrow": len(narrow),
        }
        if narrow and expected.restores:
            effect = 'above its end, silence is learned; data.narrow = "mask" excludes it'
            if expected.narrow == "mask":
                effect = "what lies above its end is not trained on"
            report.doubts.append(
                f"{split}: the content of {_clips(narrow)} of {len(measured)} measured ends below "
                f"{limit:.0f} Hz; {effect}"
            )
    if expected.restores and (error := _empty_band(hertz.get("train", []), expected.sample_rate)):
        report.refused.append(error)


def rate_that_holds(hertz: Sequence[float], sample_rate: int) -> int | None:
    """The lowest common rate below `sample_rate` that holds all that nearly all clips hold.

    hertz: their bandwidths. None if there is no such rate.
    """
    if not hertz:
        return None
    highest = sorted(hertz)[math.ceil(MOST * len(hertz)) - 1]
    rates = (rate for rate in RATES if rate < sample_rate and SLACK * rate / 2 >= highest)
    return next(rates, None)


def _empty_band(measured: Sequence[tuple[float, Clip]], sample_rate: int) -> StageError | None:
    """The error where a lower sample rate would hold all that nearly all clips hold, or None."""
    rate = rate_that_holds([hz for hz, _ in measured], sample_rate)
    if rate is None:
        return None
    ordered = sorted(measured, key=lambda pair: pair[0])
    most = [pair for pair in ordered if pair[0] <= SLACK * rate / 2]
    return StageError(
        f"{len(most)} of {len(ordered)} measured training clips hold nothing above "
        f"{rate / 2:.0f} Hz: at data.sample_rate {sample_rate}, silence would be learned",
        problems=[Problem(clip.key, f"ends at {hz:.0f} Hz") for hz, clip in most[:NAMED]],
        hint=f"use recordings that have not been resampled up, or --set data.sample_rate={rate}",
    )


def evenly(clips: Sequence[Clip], count: int) -> list[Clip]:
    """At most `count` clips, evenly spaced."""
    if len(clips) <= count:
        return list(clips)
    return [clips[number * len(clips) // count] for number in range(count)]


def _clips(examples: Sequence[str]) -> str:
    """The number of clips, with the first of them: "3 clips (a.wav, b.wav, c.wav)"."""
    more = ", ..." if len(examples) > EXAMPLES else ""
    return f"{counted(len(examples), 'clip')} ({', '.join(examples[:EXAMPLES])}{more})"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
