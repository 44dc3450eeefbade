"""Samples of runs on a page: players with spectrograms, each prompt or clip beside its reference.

What a page holds is limited. The newest step of every sample comes first, then evenly spaced
earlier ones; what is left out is counted on the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from stagecli.errors import among, counted
from stagecli.report.formats import duration, significant
from stagecli.report.run_report import RunReport
from stagecli.report.samples import Sample, read_samples
from stagecli.report.sound import LONGEST, Sound, SoundError, load_sound

__all__ = ["players", "spread"]

LARGEST = 12_000_000  # characters of sound and pictures on one page
SHOWN = 5  # tiles of a row that are seen without opening the rest: as many as a screen is wide
NOTE = (
    "Sound is compressed to MP3 here. Spectrograms: time from left to right, frequency from 0 at"
    " the bottom to half of the sample rate at the top; brighter is louder, on one scale in a row."
)


@dataclass
class Row:
    """What one run made of one prompt or clip: its samples from the newest to the oldest."""

    run: str
    samples: list[Sample] = field(default_factory=list)

    @property
    def beside(self) -> dict[str, Path]:
        """What the samples are compared with, of the newest that has it: label -> file."""
        return next((sample.beside for sample in self.samples if sample.beside), {})


@dataclass
class Sounds:
    """The sounds of a page by file: loaded, or why not; full: there is no room for more."""

    loaded: dict[Path, Sound | str] = field(default_factory=dict)
    size: int = 0
    full: bool = False

    def add(self, path: Path, loudest_db: float | None) -> None:
        """Load a file unless the page is full."""
        if self.full or path in self.loaded:
            return
        try:
            sound = load_sound(path, loudest_db)
        except SoundError as problem:
            self.loaded[path] = str(problem)
            return
        if self.size + sound.size > LARGEST:
            self.full = True
            return
        self.loaded[path] = sound
        self.size += sound.size


def players(reports: Sequence[RunReport]) -> str:
    """The samples of runs as HTML; runs that were given the same prompt are together.

    Says so where there are none, and what was left out. Raises OSError.
    """
    notes = []
    samples = []
    for report in reports:
        of_run, problems = read_samples(report)
        samples += of_run
        notes += problems
    if not samples:
        runs = "this run has" if len(reports) == 1 else "these runs have"
        return _notes([*notes, f"{runs} no samples: train.sample_every in the recipe draws them"])
    titles = _by_title(samples)
    rows = [row for rows in titles.values() for row in rows]
    sounds = load_sounds(rows)
    cards = [_card(title, of_title, sounds, len(reports) > 1) for title, of_title in titles.items()]
    sentences = [NOTE, *notes, *_left_out(samples, sounds, reports)]
    return f'{_notes(sentences)}<div class="samples">{"".join(cards)}</div>'


def _by_title(samples: Iterable[Sample]) -> dict[str, list[Row]]:
    """The rows of each prompt or clip, one per run."""
    titles: dict[str, dict[str, Row]] = {}
    for sample in samples:
        rows = titles.setdefault(sample.title, {})
        rows.setdefault(sample.run, Row(sample.run)).samples.append(sample)
    return {title: list(rows.values()) for title, rows in titles.items()}


def spread(count: int) -> list[int]:
    """0 to count - 1, each once: 0, then evenly spaced ones, ever closer."""
    order = [0] if count else []
    gap = 1 << max(0, count - 1).bit_length()
    while gap:
        order += [index for index in range(gap, count, 2 * gap)]
        gap //= 2
    return order


def load_sounds(rows: Sequence[Row]) -> Sounds:
    """Sounds for a page, in rounds over the rows so that every one gets its share of the room."""
    sounds = Sounds()
    scales: dict[int, float | None] = {}
    for k, row in enumerate(rows):
        # The first sound of a row gives the scale of its pictures.
        for path in [*reversed(row.beside.values()), row.samples[0].path]:
            sounds.add(path, scales.get(k))
            sound = sounds.loaded.get(path)
            if isinstance(sound, Sound):
                scales.setdefault(k, sound.loudest_db)
    orders = [spread(len(row.samples)) for row in rows]
    for turn in range(1, max(map(len, orders), default=0)):
        for k, (row, order) in enumerate(zip(rows, orders, strict=True)):
            if turn < len(order):
                sounds.add(row.samples[order[turn]].path, scales.get(k))
    return sounds


def _left_out(samples: Sequence[Sample], sounds: Sounds, reports: Sequence[RunReport]) -> list[str]:
    """Sentences about samples that have no player."""
    sentences = []
    missing = sum(sample.path not in sounds.loaded for sample in samples)
    if missing:
        folders = ", ".join(str(report.path / "samples") for report in reports)
        sentences.append(
            f"{among(missing, len(samples), 'sample', 'is', 'are')} not on this page, which holds"
            f" at most {LARGEST / 1e6:.0f} MB of sound and pictures: the newest and evenly spaced"
            f" earlier ones; all are in {folders}"
        )
    longer = [
        sound
        for sound in sounds.loaded.values()
        if isinstance(sound, Sound) and sound.heard < sound.seconds
    ]
    if longer:
        sentences.append(
            f"of {counted(len(longer), 'longer file')} only the first {LONGEST:.0f} s are heard"
        )
    return sentences


def _card(title: str, rows: Sequence[Row], sounds: Sounds, several: bool) -> str:
    body = "".join(_row(title, row, sounds, several) for row in rows)
    return f'<article class="sample"><h3>{escape(title) or "(no prompt)"}</h3>{body}</article>'


def _row(title: str, row: Row, sounds: Sounds, several: bool) -> str:
    """What is compared with, the newest step, a few earlier ones, and the rest to be opened."""
    shown = spread(len(row.samples))[: SHOWN - len(row.beside)]
    first = [_tile(label, path, title, sounds) for label, path in row.beside.items()]
    first += [_sample_tile(row.samples[index], sounds) for index in sorted(shown)]
    rest = [
        _sample_tile(sample, sounds)
        for index, sample in enumerate(row.samples)
        if index not in shown and sample.path in sounds.loaded
    ]
    name = f"{row.run}: {title}" if several else title
    html = f"<h4>{escape(row.run)}</h4>" if several else ""
    html += _strip(name, first)
    if rest:
        more = f"{len(rest)} more {'step' if len(rest) == 1 else 'steps'}"
        html += f"<details><summary>{more}</summary>{_strip(f'{name}, more steps', rest)}</details>"
    return html


def _strip(name: str, tiles: Sequence[str]) -> str:
    """Tiles beside each other; on a narrow screen they scroll, by keyboard too."""
    return (
        f'<div class="strip" role="group" tabindex="0" aria-label="{escape(name)}">'
        f"{''.join(tiles)}</div>"
    )


def _sample_tile(sample: Sample, sounds: Sounds) -> str:
    return _tile(sample.label, sample.path, sample.title, sounds)


def _tile(label: str, path: Path, title: str, sounds: Sounds) -> str:
    """A spectrogram over a player, or why there is none."""
    sound = sounds.loaded.get(path, "is left out: this page is full")
    caption = f"<b>{escape(label)}</b>"
    if isinstance(sound, str):
        problem = f'<p class="note">{escape(f"{path.name} {sound}")}</p>'
        return f'<figure class="clip"><figcaption>{caption}</figcaption>{problem}</figure>'
    width = duration_text(sound.heard)
    top = f"{significant(sound.sample_rate / 2000, 3)} kHz"
    name = escape(f"{label}: {title}")
    facts = f"{width}, to {top}{', silent' if sound.silent else ''}"
    return (
        f'<figure class="clip"><figcaption>{caption} <small>{facts}</small></figcaption>'
        f'<img src="{sound.picture}" width="320" height="128"'
        f' alt="Spectrogram of {name} ({width}, 0 to {top})">'
        f'<audio controls preload="none" src="{sound.mp3}" aria-label="{name}"></audio></figure>'
    )


def duration_text(seconds: float) -> str:
    """`0.8 s` under a minute, else as everywhere."""
    return f"{significant(seconds, 2)} s" if seconds < 60 else duration(seconds)


def _notes(sentences: Iterable[str]) -> str:
    return "".join(f'<p class="note">{escape(sentence)}</p>' for sentence in sentences)
