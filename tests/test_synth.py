"""The synthetic source: reproducible clips whose sound and caption match their labels."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecli import schema
from stagecli.data import synth
from stagecli.data.rows import SPLITS, Clip, Split
from stagecli.data.synth import SynthSource, draw_scene
from stagecli.data.synth_blocks import Array, Params
from stagecli.data.synth_events import KINDS, PITCHES, TEMPOS
from stagecli.errors import StageError

ROOT = Path(__file__).resolve().parents[1]


def source(
    sample_rate: int = 16000, seconds: float = 1.0, clips: int = 240, seed: int = 0
) -> SynthSource:
    return SynthSource(schema.Data(sample_rate=sample_rate, seconds=seconds, clips=clips), seed)


@cache
def render(
    kind: str, pitch: str, tempo: str, sample_rate: int, *, seconds: float = 1.0, seed: int = 3
) -> Array:
    """One event [n] at the lower end of the ranges of its words."""
    rates = KINDS[kind].rates
    params = Params(KINDS[kind].hz[pitch][0], rates[tempo][0] if rates else 0.0, seconds)
    return KINDS[kind].render(
        np.random.default_rng(seed), round(seconds * sample_rate), sample_rate, params
    )


def rms_db(audio: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(audio, dtype=np.float64)) + 1e-20))


def centroid(audio: np.ndarray, sample_rate: int) -> float:
    """Power-weighted mean frequency in Hz."""
    power = np.abs(np.fft.rfft(audio)) ** 2
    return float(np.sum(power * np.fft.rfftfreq(audio.size, 1 / sample_rate)) / np.sum(power))


def contains(caption: str, words: tuple[str, ...]) -> bool:
    return any(re.search(rf"(?<![\w-]){word}(?![\w-])", caption) for word in words)


@cache
def singles() -> list[tuple[Clip, np.ndarray]]:
    clips_source = source()
    return [
        (clip, clips_source.read(clip))
        for clip in clips_source.clips("train")
        if not clip.labels["relation"]
    ]


def test_sizes_keys_and_fields() -> None:
    clips_source = source(clips=240)
    assert [len(clips_source.clips(split)) for split in SPLITS] == [240, 24, 24]
    assert len(source(clips=5).clips("valid")) == 16
    clip = clips_source.clips("valid")[7]
    assert (clip.key, clip.split, clip.seconds, clip.path) == ("synth/valid/7", "valid", 1.0, None)
    assert clips_source.sample_rate == 16000
    assert clips_source.skipped == []
    assert all(isinstance(value, str) for value in clip.labels.values())


def test_reading_does_not_depend_on_order_or_instance() -> None:
    first = source()
    second = source()
    clips = first.clips("train")[:10]
    forward = [first.read(clip) for clip in clips]
    backward = [second.read(clip) for clip in reversed(second.clips("train")[:10])][::-1]
    assert clips == second.clips("train")[:10]
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert forward[0].dtype == np.float32
    assert forward[0].shape == (16000,)


def test_another_process_makes_the_same() -> None:
    code = (
        "import hashlib\nfrom stagecli import schema\nfrom stagecli.data.synth import SynthSource\n"
        "clips_source = SynthSource(schema.Data(sample_rate=16000, seconds=1.0, clips=240), 0)\n"
        "digest = hashlib.sha256()\n"
        "for clip in clips_source.clips('train')[:12]:\n"
        "    digest.update(clips_source.read(clip).tobytes() + clip.caption.encode())\n"
        "    digest.update(clips_source.content_hash(clip).encode())\n"
        "print(digest.hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    clips_source = source()
    digest = hashlib.sha256()
    for clip in clips_source.clips("train")[:12]:
        digest.update(
            clips_source.read(clip).tobytes()
            + clip.caption.encode()
            + clips_source.content_hash(clip).encode()
        )
    assert done.stdout.strip() == digest.hexdigest()


def test_splits_and_seeds_share_no_clip() -> None:
    clips_source = source()
    other = source(seed=1)
    streams = [
        [clips_source.read(clip) for clip in clips_source.clips(split)[:16]] for split in SPLITS
    ]
    streams.append([other.read(clip) for clip in other.clips("train")[:16]])
    sounds = [audio.tobytes() for stream in streams for audio in stream]
    assert len(set(sounds)) == len(sounds)


def test_content_hash_covers_everything_the_audio_depends_on() -> None:
    clip = source().clips("train")[0]
    hashes = [
        source().content_hash(clip),
        source(seed=1).content_hash(clip),
        source(sample_rate=8000).content_hash(clip),
        source(seconds=2.0).content_hash(clip),
        source().content_hash(source().clips("valid")[0]),
        source().content_hash(source().clips("train")[1]),
    ]
    assert len(set(hashes)) == len(hashes)
    assert source(clips=500).content_hash(clip) == hashes[0]
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in hashes)


def test_every_split_has_every_kind_equally_often() -> None:
    assert len(KINDS) >= 12
    counts = Counter(clip.labels["kind"] for clip in source().clips("train"))
    assert set(counts.values()) == {240 // len(KINDS)}
    assert {clip.labels["kind"] for clip in source(clips=1).clips("test")} == set(KINDS)
    clips = source(clips=600).clips("train")
    assert {clip.labels["second_kind"] for clip in clips} == {*KINDS, ""}
    assert {clip.labels["relation"] for clip in clips} == {"", "then", "with"}
    assert 0.2 < np.mean([clip.labels["relation"] != "" for clip in clips]) < 0.4


def test_captions_state_the_labels() -> None:
    """A stated word is the label's; only the middle one of three may be left out; captions vary."""
    stems = {"noise": "noise", "drops": "drops", "birds": "bird"}
    clips = source(clips=1200).clips("train")
    for clip in clips:
        labels = clip.labels
        caption = clip.caption
        events = [("kind", "pitch", "tempo"), ("second_kind", "second_pitch", "second_tempo")]
        for kind, pitch, tempo in events[: 2 if labels["relation"] else 1]:
            name = labels[kind]
            assert stems.get(name, name) in caption
            pitches = synth.TIMBRE_WORDS if KINDS[name].noisy else synth.PITCH_WORDS
            assert labels[pitch] == "mid" or contains(caption, pitches[labels[pitch]]), caption
            assert labels[tempo] in ("", "steady") or contains(
                caption, synth.TEMPO_WORDS[labels[tempo]]
            ), caption
            if not labels["relation"]:
                assert not any(
                    contains(caption, pitches[word]) for word in PITCHES if word != labels["pitch"]
                )
                unsaid = [word for word in TEMPOS if word != labels["tempo"]]
                assert not any(contains(caption, synth.TEMPO_WORDS[word]) for word in unsaid), (
                    caption
                )
        stated = [word for word, forms in synth.LOUDNESS_WORDS.items() if contains(caption, forms)]
        assert stated == [labels["loudness"]] or (
            stated == [] and labels["loudness"] == "normal"
        ), caption
        assert re.search(r"\*|  | a [aeiou]|^a [aeiou]|\ban [^aeiou]|^\s|\s$", caption) is None, (
            caption
        )
    assert len({clip.caption for clip in clips}) > 900


def test_order_in_the_caption_is_order_in_time() -> None:
    scenes = [draw_scene(0, "train", index, 2.0) for index in range(400)]
    sequences = [scene for scene in scenes if scene.relation == "then"]
    assert len(sequences) > 30
    for scene in sequences:
        first, second = scene.events
        assert first.start == 0.0
        assert second.start == pytest.approx(first.params.seconds)
        assert second.start + second.params.seconds == pytest.approx(2.0)
        assert re.search(r"followed by|, then | after ", scene.caption)


def test_scene_does_not_depend_on_the_sample_rate() -> None:
    low = source(sample_rate=8000).clips("train")
    high = source(sample_rate=48000).clips("train")
    assert low == high


def test_loudness_follows_its_word() -> None:
    levels = {
        word: [rms_db(audio) for clip, audio in singles() if clip.labels["loudness"] == word]
        for word in synth.LEVELS
    }
    means = [float(np.mean(levels[word])) for word in ("quiet", "normal", "loud")]
    assert means[1] - means[0] > 6
    assert means[2] - means[1] > 5
    held = {word: [] for word in synth.LEVELS}  # type: dict[str, list[float]]
    for clip, audio in singles():
        if clip.labels["kind"] in ("tone", "siren", "engine"):
            held[clip.labels["loudness"]].append(rms_db(audio))
    assert max(held["quiet"]) < min(held["normal"])
    assert max(held["normal"]) < min(held["loud"])


def test_peaks_offset_and_ends() -> None:
    for _, audio in singles():
        assert np.abs(audio).max() <= 0.95
        assert abs(float(audio.astype(np.float64).mean())) < 1e-6
        assert np.abs(audio[[0, -1]]).max() < 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sample_rate", [8000, 44100])
def test_centroid_follows_the_pitch_word(kind: str, sample_rate: int) -> None:
    low, mid, high = (
        centroid(render(kind, pitch, "steady", sample_rate), sample_rate) for pitch in PITCHES
    )
    assert low * 1.15 < mid
    assert mid * 1.15 < high


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.rates])
def test_tempo_words_do_not_overlap(kind: str) -> None:
    slow, steady, fast = (KINDS[kind].rates[tempo] for tempo in TEMPOS)
    assert slow[0] < slow[1] < steady[0] < steady[1] < fast[0] < fast[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100])
def test_sample_rates_share_one_sound(kind: str, sample_rate: int) -> None:
    """Below 0.38 of the lower rate the spectra agree: nothing aliases, no onset or noise moves."""
    for pitch, worst in (("low", 0.02), ("mid", 0.05), ("high", 0.2)):
        fine = render(kind, pitch, "steady", 48000)
        coarse = render(kind, pitch, "steady", sample_rate)
        top = int(0.38 * sample_rate)
        a = np.fft.rfft(fine)[:top] / fine.size
        b = np.fft.rfft(coarse)[:top] / coarse.size
        assert np.linalg.norm(a - b) < worst * np.linalg.norm(a)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_near_the_nyquist_frequency(kind: str) -> None:
    audio = render(kind, "high", "steady", 8000) * np.hanning(8000)
    power = np.abs(np.fft.rfft(audio)) ** 2
    assert power[3800:].sum() < 0.002 * power.sum()


def test_kinds_are_told_apart_by_their_spectra() -> None:
    """Least squares on mean and deviation of 40 log bands: far above chance (1 in 12)."""
    edges = np.geomspace(40, 7900, 41)
    hz = np.fft.rfftfreq(512, 1 / 16000)
    bands = np.array(
        [(hz >= a) & (hz < b) for a, b in zip(edges, edges[1:] + 32, strict=False)], dtype=float
    )

    def features(audio: np.ndarray) -> np.ndarray:
        frames = np.lib.stride_tricks.sliding_window_view(audio, 512)[::256] * np.hanning(512)
        log = np.log(np.abs(np.fft.rfft(frames)) @ bands.T + 1e-4)
        log -= log.max()
        return np.concatenate(
            [log.mean(0), log.std(0), np.abs(np.diff(log, axis=0)).mean(0), [1.0]]
        )

    x = np.stack([features(audio) for _, audio in singles()])
    names = sorted(KINDS)
    y = np.array([names.index(clip.labels["kind"]) for clip, _ in singles()])
    clips_source = source(clips=1000, seed=5)
    unseen = [clip for clip in clips_source.clips("valid") if not clip.labels["relation"]]
    gram = x.T @ x + 3.0 * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ np.eye(len(names))[y])
    guesses = [
        names[int(np.argmax(features(clips_source.read(clip)) @ weights))] for clip in unseen
    ]
    right = np.mean(
        [guess == clip.labels["kind"] for guess, clip in zip(guesses, unseen, strict=True)]
    )
    assert right > 0.8


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63),
    index=st.integers(0, 10**6),
    split=st.sampled_from(SPLITS),
    seconds=st.floats(0.05, 1.5),
    sample_rate=st.sampled_from([8000, 11025, 16000, 22050, 24000, 44100, 48000]),
)
def test_any_clip_is_sound(
    seed: int, index: int, split: Split, seconds: float, sample_rate: int
) -> None:
    clips_source = source(sample_rate, seconds, 1, seed)
    audio = clips_source.read(Clip(f"synth/{split}/{index}", "", split, {}, seconds))
    assert audio.shape == (round(seconds * sample_rate),)
    assert np.isfinite(audio).all()
    assert 0.001 < np.abs(audio).max() <= 0.95


def test_low_rates_and_foreign_clips_are_refused() -> None:
    with pytest.raises(StageError, match="4000"):
        source(sample_rate=4000)
    with pytest.raises(StageError, match="not a clip"):
        source().read(Clip("folder/a.wav", "", "train", {}, 1.0))
