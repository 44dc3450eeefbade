"""The built-in source: captioned sound events synthesised from (seed, split, index), no download.

A clip holds one or two events. Its description (kinds, pitch, tempo, loudness, wording) is drawn
first and without regard to the sample rate; the sound is then rendered from streams of its own. A
clip therefore does not depend on which others were read, in which process, or in what order.
Loudness is that of the loudest tenth of a second, not of the whole clip: otherwise three drops in a
silent clip would have to be louder than any rain.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from stagecli import schema
from stagecli.data.cache import Count
from stagecli.data.rows import SPLITS, Clip, Split
from stagecli.data.synth_blocks import Array, Params
from stagecli.data.synth_events import KINDS, LOWEST_RATE, PITCHES, TEMPOS
from stagecli.errors import StageError

VERSION = 1  # part of every content hash: raise it when the same clip sounds or reads differently
TWO_EVENTS = 0.3  # share of clips with two events
SHORTEST_SEQUENCE = 0.5  # seconds; in shorter clips two events always sound together
PEAK = 0.949
LEVELS = {"quiet": -30.0, "normal": -20.0, "loud": -12.0}  # dBFS RMS of the loudest 0.1 s

# Words of a caption for each label. Only the middle value of a label may be left out.
PITCH_WORDS = {
    "low": ("low", "deep", "low-pitched"),
    "mid": ("mid-pitched", "medium-pitched"),
    "high": ("high", "high-pitched"),
}
TIMBRE_WORDS = {"low": ("dull", "dark"), "mid": ("mid-toned",), "high": ("bright", "sharp")}
TEMPO_WORDS = {
    "slow": ("slow", "unhurried"),
    "steady": ("steady", "regular"),
    "fast": ("fast", "rapid"),
}
LOUDNESS_WORDS = {
    "quiet": ("quiet", "soft", "faint"),
    "normal": ("normal", "moderate"),
    "loud": ("loud", "powerful"),
}
NOUNS = {  # with their article, if any; adjectives go where the star is
    "tone": ("a * tone", "a * held tone", "a * pure tone"),
    "chirp": ("a * rising chirp", "* sweeping chirps", "* chirp sounds"),
    "pluck": ("a * plucked string", "* plucked notes", "* string plucks"),
    "bell": ("a * bell", "a * ringing bell", "* bell strokes"),
    "drum": ("a * drum", "* drum beats", "* drumming"),
    "noise": ("* noise bursts", "* bursts of noise"),
    "siren": ("a * siren", "a * wailing siren"),
    "rain": ("* rain", "* rainfall", "* pattering rain"),
    "wind": ("* wind", "* gusts of wind", "a * gusty wind"),
    "drops": ("* water drops", "* dripping drops of water"),
    "birds": ("* birds", "* singing birds", "* birdsong"),
    "engine": ("a * engine", "a * running engine"),
}
SEQUENCES = ("{0} followed by {1}", "{0}, then {1}", "first {0}, then {1}", "{1} after {0}")
MIXTURES = (
    "{0} and {1} at the same time",
    "{0} together with {1}",
    "{0} and {1} at once",
    "{0} over {1}",
)
OPENINGS = ("", "", "", "the sound of ", "a recording of ")


@dataclass(frozen=True)
class SoundEvent:
    """One sound of a scene; `start` in seconds, `tempo` empty where it has no meaning."""

    kind: str
    pitch: str
    tempo: str
    start: float
    params: Params


@dataclass(frozen=True)
class Scene:
    """Description of a clip; `relation` is "" (one event), "then" or "with"."""

    events: tuple[SoundEvent, ...]
    relation: str
    loudness: str
    level_db: float
    caption: str

    def labels(self) -> dict[str, Any]:
        """Every label as a string; those of a missing second event are empty."""
        first, *others = self.events
        second = others[0] if others else None
        return {
            "kind": first.kind,
            "pitch": first.pitch,
            "tempo": first.tempo,
            "loudness": self.loudness,
            "relation": self.relation,
            "second_kind": second.kind if second else "",
            "second_pitch": second.pitch if second else "",
            "second_tempo": second.tempo if second else "",
        }


class SynthSource:
    """Sound events with captions, synthesised when read.

    data: the recipe's section, of which `sample_rate` (Hz), `seconds` and `clips` are used; seed:
    another seed is another data set. Raises StageError for a sample rate below 8000 Hz, where some
    kinds would be silent.
    """

    def __init__(self, data: schema.Data, seed: int) -> None:
        if data.sample_rate < LOWEST_RATE:
            raise StageError(
                f"data.sample_rate = {data.sample_rate} is too low for the synth source",
                hint=f"set data.sample_rate to at least {LOWEST_RATE}",
            )
        self.sample_rate = data.sample_rate
        self.seconds = data.seconds
        self.seed = seed
        self.skipped: list[Any] = []  # synthesised audio is never unreadable
        self.passed_over: list[str] = []
        self.notices: list[str] = []
        held_out = max(16, data.clips // 10)
        self._sizes: dict[Split, int] = {"train": data.clips, "valid": held_out, "test": held_out}

    def clips(self, split: Split) -> list[Clip]:
        """Every clip of `split` in order of index, with caption and labels but no audio."""
        return [self._clip(split, index) for index in range(self._sizes[split])]

    def read(self, clip: Clip) -> npt.NDArray[np.float32]:
        """Mono audio [round(seconds * sample_rate)], |x| <= 0.95.

        Raises StageError for a clip of another source.
        """
        split, index = _parse_key(clip.key)
        scene = draw_scene(self.seed, split, index, self.seconds)
        n = round(self.seconds * self.sample_rate)
        mix = np.zeros(n)
        for number, event in enumerate(scene.events, 1):
            rng = _stream(self.seed, split, index, number)
            start = round(event.start * self.sample_rate)
            length = min(round(event.params.seconds * self.sample_rate), n - start)
            sound = KINDS[event.kind].render(rng, length, self.sample_rate, event.params)
            mix[start : start + length] += _finished(sound, self.sample_rate)
        gain = 10 ** (scene.level_db / 20) / max(_loudest(mix, self.sample_rate), 1e-9)
        gain = min(gain, PEAK / max(float(np.abs(mix).max(initial=0.0)), 1e-9))
        return (gain * mix).astype(np.float32)

    def content_hash(self, clip: Clip) -> str:
        """SHA-256 (hex) of everything that the audio of `clip` depends on.

        Raises StageError for a clip of another source.
        """
        split, index = _parse_key(clip.key)
        identity = (
            "synth",
            VERSION,
            self.seed,
            split,
            index,
            self.sample_rate,
            float(self.seconds),
        )
        return hashlib.sha256(repr(identity).encode()).hexdigest()

    def content_hashes(self, clips: Sequence[Clip], progress: Count | None = None) -> list[str]:
        """`content_hash` of many clips; takes no time that would be worth reporting."""
        return [self.content_hash(clip) for clip in clips]

    def info(self, clip: Clip) -> None:
        """No file holds the audio."""

    def bandwidth(self, clip: Clip) -> None:
        """No file holds the audio."""

    def _clip(self, split: Split, index: int) -> Clip:
        scene = draw_scene(self.seed, split, index, self.seconds)
        return Clip(f"synth/{split}/{index}", scene.caption, split, scene.labels(), self.seconds)


def draw_scene(seed: int, split: Split, index: int, seconds: float) -> Scene:
    """The scene of one clip, a pure function of its arguments; `seconds` only sets the timing."""
    rng = _stream(seed, split, index, 0)
    two = bool(rng.uniform() < TWO_EVENTS)
    sequence = bool(rng.uniform() < 0.6)
    cut = float(rng.uniform(0.42, 0.58))
    loudness = str(rng.choice(list(LEVELS)))
    level_db = LEVELS[loudness] + float(rng.uniform(-1.0, 1.0))
    names = [_first_kind(seed, split, index)]
    if two:
        names.append(str(rng.choice([name for name in KINDS if name != names[0]])))
    relation = ""
    if two:
        relation = "then" if sequence and seconds >= SHORTEST_SEQUENCE else "with"
    spans = [(0.0, seconds)] * len(names)
    if relation == "then":
        middle = round(50 * cut * seconds) / 50  # whole samples at every common rate
        spans = [(0.0, middle), (middle, seconds - middle)]
    events = tuple(_event(rng, name, *span) for name, span in zip(names, spans, strict=True))
    return Scene(events, relation, loudness, level_db, _caption(rng, events, relation, loudness))


def _event(rng: np.random.Generator, name: str, start: float, seconds: float) -> SoundEvent:
    kind = KINDS[name]
    pitch = str(rng.choice(PITCHES))
    tempo = str(rng.choice(TEMPOS))
    low, high = kind.hz[pitch]
    hz = float(np.exp(rng.uniform(np.log(low), np.log(high))))  # uniform in octaves
    rate = float(rng.uniform(*kind.rates[tempo])) if kind.rates else 0.0
    return SoundEvent(name, pitch, tempo if kind.rates else "", start, Params(hz, rate, seconds))


def _first_kind(seed: int, split: Split, index: int) -> str:
    """Kinds come in shuffled rounds, so that even the smallest split has each equally often."""
    names = list(KINDS)
    turn, place = divmod(index, len(names))
    return names[int(_stream(seed, split, turn, 9).permutation(len(names))[place])]


def _stream(seed: int, split: Split, index: int, purpose: int) -> np.random.Generator:
    """An independent stream; purpose: 0 scene, 1 and 2 audio of the events, 9 order of kinds."""
    address = (SPLITS.index(split), index, purpose)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=address))


def _parse_key(key: str) -> tuple[Split, int]:
    match = re.fullmatch(r"synth/(train|valid|test)/(\d+)", key)
    if match is None:
        raise StageError(
            f"{key!r} is not a clip of the synth source",
            hint="read clips with the source that listed them",
        )
    return cast(Split, match[1]), int(match[2])


# --- wording --------------------------------------------------------------------------------------


def _caption(
    rng: np.random.Generator, events: tuple[SoundEvent, ...], relation: str, loudness: str
) -> str:
    """One line of lower-case English that states every label; middle values may be left out."""
    word = str(rng.choice(LOUDNESS_WORDS[loudness]))
    normal = loudness == "normal"
    may_omit = bool(rng.uniform() < 0.6)
    if relation:
        form = str(rng.choice(SEQUENCES if relation == "then" else MIXTURES))
        text = form.format(*(_phrase(rng, event, "") for event in events))
        ending = f", both at a {word} volume" if normal else f", both {word}"
    else:
        text = str(rng.choice(OPENINGS)) + _phrase(rng, events[0], "" if normal else word)
        ending = f" at a {word} volume" if normal else ""
    return text if normal and may_omit else text + ending


def _phrase(rng: np.random.Generator, event: SoundEvent, loudness: str) -> str:
    """A noun phrase such as "a loud, deep bell at a fast pace"; loudness: an adjective or empty."""
    pitch = str(rng.choice((TIMBRE_WORDS if KINDS[event.kind].noisy else PITCH_WORDS)[event.pitch]))
    tempo = str(rng.choice(TEMPO_WORDS[event.tempo])) if event.tempo else ""
    noun = str(rng.choice(NOUNS[event.kind]))
    omit_pitch, omit_tempo, trailing = rng.uniform(size=3) < (0.4, 0.4, 0.35)
    if event.pitch == "mid" and omit_pitch:
        pitch = ""
    if event.tempo == "steady" and omit_tempo:
        tempo = ""
    ending = f" at a {tempo} pace" if tempo and trailing else ""
    adjectives = [word for word in (loudness, "" if ending else tempo, pitch) if word]
    text = " ".join(noun.replace("*", ", ".join(adjectives)).split()) + ending
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


# --- level ----------------------------------------------------------------------------------------


def _loudest(sound: Array, sample_rate: int) -> float:
    """RMS of the loudest tenth of a second."""
    width = max(min(sound.size, sample_rate // 10), 1)
    energy = np.concatenate([[0.0], np.cumsum(sound**2)])
    return float(np.sqrt(max((energy[width:] - energy[:-width]).max(initial=0.0), 0.0) / width))


def _finished(sound: Array, sample_rate: int) -> Array:
    """`sound` [n] faded in (3 ms) and out (15 ms), with mean 0 and loudest 0.1 s at RMS 1."""
    n = sound.size
    t = (np.arange(n) + 0.5) / sample_rate
    ends = np.minimum(t / 0.003, (n / sample_rate - t) / 0.015)
    fade = np.sin(0.5 * np.pi * np.clip(ends, 0.0, 1.0)) ** 2
    faded = fade * sound
    # Remove the mean under the fade: subtracted everywhere it would leave a step at either end.
    faded -= fade * (faded.sum() / max(fade.sum(), 1e-9))
    return cast(Array, faded / max(_loudest(faded, sample_rate), 1e-9))
