"""Render a set of music-like sounds to score super-resolution on, unlike ESC-10 and `synth`.

    python docs/experiments/sr_third_source.py third-source/made --seed 0

Drums of shaped noise and inharmonic partials, loops of them with a swing and a room, strings by
Karplus and Strong, and pads of detuned sawtooths through a moving filter: 24 WAV files of 4 s at
44.1 kHz. They are for one evaluation of a finished model and must not be trained or tuned on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import butter, fftconvolve, lfilter, sosfilt

RATE = 44100
SECONDS = 4.0
EACH = 6  # files of each kind
PEAK = 0.7


def decay(length: int, seconds: float) -> np.ndarray:
    """Exponential decay by 60 dB in `seconds`, [length]."""
    return np.exp(-6.9 * np.arange(length) / (seconds * RATE))


def shaped_noise(
    rng: np.random.Generator, length: int, low: float, high: float, order: int
) -> np.ndarray:
    """Noise [length] through a band-pass of Butterworth."""
    band = butter(order, [low, high], btype="bandpass", fs=RATE, output="sos")
    return sosfilt(band, rng.standard_normal(length))


def hat(rng: np.random.Generator) -> np.ndarray:
    """A hi-hat or cymbal: square waves of inharmonic pitches and hiss, high-passed."""
    length = int(RATE * rng.uniform(0.05, 1.2))
    time = np.arange(length) / RATE
    pitches = rng.uniform(280, 900) * np.array([1.0, 1.34, 1.79, 2.21, 2.63, 3.07])
    metal = sum(np.sign(np.sin(2 * np.pi * pitch * time)) for pitch in pitches)
    hiss = rng.standard_normal(length)
    edge = butter(3, rng.uniform(3000, 8000), btype="highpass", fs=RATE, output="sos")
    return sosfilt(edge, 0.3 * metal + hiss) * decay(length, length / RATE)


def snare(rng: np.random.Generator) -> np.ndarray:
    """A snare drum: two modes of the skin and the rattle of the wires."""
    length = int(RATE * rng.uniform(0.15, 0.4))
    time = np.arange(length) / RATE
    pitch = rng.uniform(150, 260)
    skin = sum(np.sin(2 * np.pi * pitch * mode * time) for mode in (1.0, 1.59))
    wires = shaped_noise(rng, length, rng.uniform(900, 2500), 19000, 1)
    return 0.7 * skin * decay(length, 0.12) + wires * decay(length, rng.uniform(0.1, 0.3))


def kick(rng: np.random.Generator) -> np.ndarray:
    """A bass drum: a falling sine and a click."""
    length = int(RATE * 0.4)
    hertz = rng.uniform(42, 60) * (1 + rng.uniform(3, 8) * decay(length, 0.08))
    click = rng.standard_normal(length) * decay(length, 0.012)
    return np.sin(2 * np.pi * np.cumsum(hertz) / RATE) * decay(length, 0.35) + 0.4 * click


def string(rng: np.random.Generator, seconds: float = 1.5) -> np.ndarray:
    """A plucked string by Karplus and Strong (1983), with a bright or dull pick."""
    length = int(RATE * seconds)
    period = int(RATE / rng.uniform(80, 600))
    pick = lfilter([1 - (soft := rng.uniform(0.0, 0.8))], [1, -soft], rng.standard_normal(period))
    excitation = np.zeros(length)
    excitation[:period] = pick
    loss = rng.uniform(0.990, 0.998)
    blend = rng.uniform(0.5, 0.9)
    feedback = np.zeros(period + 2)
    feedback[0] = 1.0
    feedback[period] = -loss * blend
    feedback[period + 1] = -loss * (1 - blend)
    return lfilter([1.0], feedback, excitation)


def pad(rng: np.random.Generator) -> np.ndarray:
    """A chord of detuned sawtooths through a low-pass that opens slowly."""
    length = int(RATE * SECONDS)
    time = np.arange(length) / RATE
    root = rng.uniform(80, 220)
    total = np.zeros(length)
    for ratio in (1.0, 1.2, 1.5, 2.0):
        for detune in rng.normal(0, 0.004, 3):
            hertz = root * ratio * (1 + detune)
            phase = rng.uniform(0, 2 * np.pi)
            for number in range(1, int(0.45 * RATE / hertz)):
                total += np.sin(2 * np.pi * number * hertz * time + number * phase) / number
    dull = sosfilt(butter(2, 1500, fs=RATE, output="sos"), total)
    opening = (0.5 - 0.5 * np.cos(2 * np.pi * rng.uniform(0.2, 0.5) * time)) * rng.uniform(0.3, 1)
    return dull + opening * (total - dull)


def sequence(rng: np.random.Generator, sounds: list[np.ndarray], onsets: np.ndarray) -> np.ndarray:
    """Sounds drawn at random at each onset in seconds."""
    mix = np.zeros(int(RATE * SECONDS))
    for onset in onsets:
        sound = sounds[int(rng.integers(len(sounds)))] * rng.uniform(0.4, 1.0)
        start = int(onset * RATE)
        sound = sound[: mix.size - start]
        mix[start : start + sound.size] += sound
    return mix


def drums(rng: np.random.Generator) -> np.ndarray:
    """Single strokes of one drum or cymbal."""
    kind = (hat, snare, kick)[int(rng.integers(3))]
    strokes = [kind(rng) / 3 for _ in range(4)]
    return sequence(rng, strokes, np.arange(0.1, SECONDS - 0.3, rng.uniform(0.4, 0.9)))


def loop(rng: np.random.Generator) -> np.ndarray:
    """A bar of hats, snares and kicks with swing, in a small room."""
    beat = 60 / rng.uniform(80, 140)
    eighths = np.arange(0.05, SECONDS - 0.3, beat / 2)
    eighths[1::2] += rng.uniform(0, 0.12) * beat
    mix = sequence(rng, [hat(rng) / 8, hat(rng) / 8], eighths)
    mix += sequence(rng, [kick(rng)], eighths[::4])
    mix += sequence(rng, [snare(rng) / 3], eighths[2::4])
    room = rng.standard_normal(RATE // 3) * decay(RATE // 3, rng.uniform(0.1, 0.3))
    room[0] = 20
    return fftconvolve(mix, room)[: mix.size]


def strings(rng: np.random.Generator) -> np.ndarray:
    """A picked sequence of notes."""
    notes = [string(rng) for _ in range(5)]
    return sequence(rng, notes, np.arange(0.1, SECONDS - 0.3, rng.uniform(0.2, 0.5)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for kind_number, kind in enumerate((drums, loop, strings, pad)):
        for number in range(EACH):
            audio_N = kind(np.random.default_rng([options.seed, kind_number, number]))
            audio_N = PEAK * audio_N / np.abs(audio_N).max()
            path = options.folder / f"{kind.__name__}{number}.wav"
            soundfile.write(path, audio_N.astype(np.float32), RATE, subtype="FLOAT")


if __name__ == "__main__":
    main()
