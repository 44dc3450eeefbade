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
from stagecli.errors import Problem, StageError, among, counted
from stagecli.files import JsonRow

MEASURED = 64  # clips per split whose bandwidth is measured, evenly spaced
MOST = 0.9  # share of narrow clips from which on the sample rate of an sr recipe cannot be meant
SLACK = 1.03  # a resampler's transition band: content may end this much above a Nyquist frequency
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 96000)
NAMED = 5  # problems listed with an error
EXAMPLES = 3  # clips named in a doubt

CutCaptions = Callable[[Sequence[str]], Sequence[tuple[Hashable, bool]]]
"""Captions -> (the part that the network reads, whether something was cut off) of each."""


@dataclass(kw_only=True)
class DataReport:
    """facts: counts by name, as JSON; doubts: sentences about what may not be meant."""

    facts: JsonRow = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)


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
    """The report on the splits of `prints`, which is the fingerprint of `source`.

    progress: (clips measured, clips to measure). Raises StageError for what cannot be meant:
    captions that all become one by being cut, and data to restore that holds nothing to restore.
    """
    clips: dict[Split, Sequence[Clip]] = {split: source.clips(split) for split in prints}
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
        "rates": {str(rate): rates[rate] for rate in sorted(rates)},
        "channels": {str(number): channels[number] for number in sorted(channels)},
    }


def _report_peaks(
    report: DataReport, clips: Mapping[Split, Sequence[Clip]], source: Source
) -> None:
    for split, of_split in clips.items():
        loud = [
            f"{clip.key}: {info.peak:.3g}"
            for clip in of_split
            if (info := source.info(clip)) is not None and info.peak > 1
        ]
        report.facts["splits"][split]["peaks_over_1"] = len(loud)
        if loud:
            report.doubts.append(f"{split}: {_clips(loud)} with peaks above full scale (1.0)")


def _report_captions(
    report: DataReport, clips: Mapping[Split, Sequence[Clip]], expected: Expectations
) -> None:
    """Count the captions that are cut, and those that become equal by it. Raises StageError."""
    if expected.cut is None:
        return
    for split, of_split in clips.items():
        # Different captions by the part that is read of them.
        captions = Counter(caption for clip in of_split for caption in clip.captions)
        kept = dict(zip(captions, expected.cut(list(captions)), strict=True))
        by_part: dict[Hashable, list[str]] = {}
        for caption, (part, _) in kept.items():
            by_part.setdefault(part, []).append(caption)
        cut = sum(captions[caption] for caption, (_, is_cut) in kept.items() if is_cut)
        equal = [caption for same in by_part.values() if len(same) > 1 for caption in same]
        report.facts["splits"][split] |= {"captions_cut": cut, "captions_made_equal": len(equal)}

        # All the same: the network would learn to ignore its prompt.
        limit = f"condition.max_length ({expected.max_length})"
        if split == "train" and len(by_part) == 1 and len(captions) > 1:
            raise StageError(
                f"all {len(captions)} different training captions become one when they are cut",
                problems=[Problem(limit, f"{_short(text)!r} is cut") for text in equal[:NAMED]],
                hint="raise condition.max_length",
            )
        if cut:
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
        report.facts["splits"][split]["equal_content"] = len(twins)
        if twins:
            report.doubts.append(f"{split}: {_clips(twins)} with the content of another")

    shared = [
        f"{clip.key} = {first['train', clip.content]}"
        for clip in prints.get("valid", ())
        if ("train", clip.content) in first
    ]
    report.facts["equal_in_train_and_valid"] = len(shared)
    if shared:
        report.doubts.append(
            f"{_clips(shared)} of the valid split with the content of a training clip: "
            "validation measures what was trained on"
        )


def _report_bandwidth(
    report: DataReport,
    clips: Mapping[Split, Sequence[Clip]],
    source: Source,
    expected: Expectations,
    progress: Count | None,
) -> None:
    """Measure some clips of each split. Raises StageError where there is nothing to restore."""
    in_files = {
        split: [clip for clip in of_split if source.info(clip) is not None]
        for split, of_split in clips.items()
    }
    chosen = [(split, clip) for split in clips for clip in _evenly(in_files[split], MEASURED)]
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
    if expected.restores:
        _refuse_empty_band(hertz.get("train", []), expected.sample_rate)


def _refuse_empty_band(measured: Sequence[tuple[float, Clip]], sample_rate: int) -> None:
    """Raises StageError where a lower sample rate would hold all that nearly all clips hold."""
    if not measured:
        return
    ordered = sorted(measured, key=lambda pair: pair[0])
    highest = ordered[math.ceil(MOST * len(ordered)) - 1][0]
    rates = [rate for rate in RATES if rate < sample_rate and SLACK * rate / 2 >= highest]
    if not rates:
        return
    most = [pair for pair in ordered if pair[0] <= SLACK * rates[0] / 2]
    raise StageError(
        f"{len(most)} of {len(ordered)} measured training clips hold nothing above "
        f"{rates[0] / 2:.0f} Hz: at data.sample_rate {sample_rate}, silence would be learned",
        problems=[Problem(clip.key, f"ends at {hz:.0f} Hz") for hz, clip in most[:NAMED]],
        hint="use recordings that have not been resampled up, "
        f"or --set data.sample_rate={rates[0]}",
    )


def _evenly(clips: Sequence[Clip], count: int) -> list[Clip]:
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
