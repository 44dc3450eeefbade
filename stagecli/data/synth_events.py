"""Twelve kinds of sound, each one function of (rng, n, sample rate, parameters).

Nothing here normalises: amplitudes are relative, the caller sets the level. The models are textbook
ones: additive synthesis, exponentially damped modes (bell, pluck), a membrane of falling pitch
(drum), Minnaert-like bubbles of rising pitch (drops), filtered noise (rain, wind).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter

from stagecli.data.synth_blocks import (
    EDGE,
    Array,
    Params,
    attack_ramp,
    band_shape,
    below_edge,
    coloured_noise,
    damped_before_strokes,
    grains,
    harmonics,
    onset_times,
    phase_of,
    since_onset,
    time_axis,
    wander,
)

Range = tuple[float, float]
Rates = tuple[Range, Range, Range]
Render = Callable[[np.random.Generator, int, int, Params], Array]

PITCHES = ("low", "mid", "high")
TEMPOS = ("slow", "steady", "fast")
LOWEST_RATE = 8000  # Hz; below it the high birds and noises would lie past the edge


@dataclass(frozen=True)
class SoundKind:
    """A kind of sound: its synthesis, and the numbers behind its words.

    hz: range of pitch in Hz for each of `PITCHES`; rates: range of strokes per second for each of
    `TEMPOS`, empty where tempo has no meaning; noisy: without definite pitch, so that captions use
    words such as dull and bright rather than low and high.
    """

    render: Render
    hz: Mapping[str, Range]
    rates: Mapping[str, Range]
    noisy: bool = False


def tone(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """A held, nearly pure tone with a soft attack and slight vibrato [n]."""
    t = time_axis(n, sample_rate)
    depth = rng.uniform(0.0, 0.004)
    speed = rng.uniform(4.5, 6.0)
    colour = rng.uniform(0.02, 0.12)
    hz = params.hz * (1 + depth * np.sin(2 * np.pi * speed * t))
    gains = np.array([1.0, colour, 0.5 * colour]) * below_edge(
        params.hz * np.arange(1.0, 4.0), sample_rate
    )
    ends = np.minimum(t / 0.04, (params.seconds - t) / 0.12)
    return harmonics(np.exp(1j * phase_of(hz, sample_rate)), gains) * np.clip(ends, 0.0, 1.0)


def chirp(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """Sweeps that rise by a factor of three, one after another [n]."""
    ratio = 3.0
    cycles = time_axis(n, sample_rate) * params.rate
    u = cycles - np.floor(cycles)
    sounding = rng.uniform(0.75, 0.9)
    u = np.minimum(u / sounding, 1.0)
    length = sounding / params.rate
    phase = 2 * np.pi * params.hz * length / np.log(ratio) * (ratio**u - 1)
    edges = np.minimum(u, 1 - u) * length / 0.012
    return np.sin(phase) * np.clip(edges, 0.0, 1.0)


def pluck(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """A plucked string on four neighbouring notes; high harmonics decay faster [n]."""
    onsets = onset_times(rng, params, 0.06)
    notes = params.hz * rng.choice([0.891, 1.0, 1.122, 1.189], onsets.size)
    position = rng.uniform(0.12, 0.3)
    damping = rng.uniform(0.7, 1.2)
    which, local = since_onset(onsets, n, sample_rate)
    local = np.maximum(local, 0.0)
    count = int(min(30, EDGE * sample_rate / notes.max()))
    k = np.arange(1.0, count + 1)
    gains = np.sin(np.pi * k * position) / k * below_edge(k * notes.max(), sample_rate)
    z = np.exp((2j * np.pi * notes[which] - damping) * local)
    wave = harmonics(z, gains) * np.exp(-1.8 * local)
    return wave * attack_ramp(local, 0.001) * damped_before_strokes(which, n, sample_rate)


def bell(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """A bell: inharmonic modes (hum, prime, tierce, quint, nominal, ...) that ring on [n].

    Each mode is a complex one-pole resonator; a stroke between two samples enters at the next
    sample with the phase it has reached.
    """
    onsets = onset_times(rng, params, 0.05)
    force = rng.uniform(0.75, 1.0, onsets.size)
    ratios = np.array([0.5, 1.0, 1.19, 1.5, 2.0, 2.51, 2.66, 3.01, 4.17, 5.43])
    ratios = ratios * (1 + rng.uniform(-0.006, 0.006, ratios.size))
    gains = np.array([0.45, 1.0, 0.75, 0.4, 0.9, 0.35, 0.4, 0.35, 0.3, 0.22])
    gains = gains * rng.uniform(0.8, 1.2, ratios.size) * below_edge(ratios * params.hz, sample_rate)
    decays = 1.1 * ratios**0.8 * rng.uniform(0.9, 1.4)
    start = np.ceil(onsets * sample_rate).astype(np.intp)
    late = start / sample_rate - onsets
    inside = start < n
    out = np.zeros(n)
    for ratio, gain, decay in zip(ratios, gains, decays, strict=True):
        if gain > 0:
            pole = 2j * np.pi * ratio * params.hz - decay
            strokes = np.zeros(n, dtype=np.complex128)
            strokes[start[inside]] += (gain * force * np.exp(pole * late))[inside]
            out += lfilter([1.0], [1.0, -np.exp(pole / sample_rate)], strokes).imag
    return out


def drum(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """A drum: a membrane whose pitch falls after each stroke, and the slap of the stick [n]."""
    onsets = onset_times(rng, params, 0.04)
    force = rng.uniform(0.6, 1.0, onsets.size)
    force[0] = 1.0
    slap = rng.uniform(0.12, 0.3)
    length = rng.uniform(0.07, 0.13)
    which, local = since_onset(onsets, n, sample_rate)
    local = np.maximum(local, 0.0)
    bend = 0.03
    turns = params.hz * (local + 1.5 * bend * (1 - np.exp(-local / bend)))
    skin = np.sin(2 * np.pi * turns) + 0.35 * np.sin(2 * np.pi * 1.59 * turns) * np.exp(
        -local / 0.04
    )
    skin *= np.exp(-local / length)
    stick = coloured_noise(
        rng, n, sample_rate, band_shape(4 * params.hz, 14 * params.hz, 2)
    ) * np.exp(-local / 0.012)
    return (
        (skin + slap * stick)
        * force[which]
        * attack_ramp(local, 0.001)
        * damped_before_strokes(which, n, sample_rate)
    )


def noise(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """Bursts of band-limited noise, switched on and off [n]."""
    share = rng.uniform(0.45, 0.6)
    cycles = time_axis(n, sample_rate) * params.rate
    u = cycles - np.floor(cycles)
    gate = np.clip(np.minimum(u, share - u) / params.rate / 0.004, 0.0, 1.0)
    return (
        coloured_noise(rng, n, sample_rate, band_shape(params.hz / 1.5, params.hz * 1.5, 6)) * gate
    )


def siren(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """A siren: a bright tone whose pitch wails up and down over most of an octave [n]."""
    t = time_axis(n, sample_rate)
    octaves = rng.uniform(0.7, 0.9)
    swing = np.sin(2 * np.pi * (params.rate * t + rng.uniform()))
    hz = params.hz * 2 ** (0.5 * octaves * swing)
    k = np.arange(1.0, 9.0)
    # Per sample: a harmonic that leaves the band at the top of the wail is present at the bottom.
    gains = k[:, None] ** -1.1 * below_edge(k[:, None] * hz, sample_rate)
    return harmonics(np.exp(1j * phase_of(hz, sample_rate)), gains)


def rain(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """Rain: a broad hiss and the patter of single drops, `rate` of them per second [n]."""
    hiss = coloured_noise(rng, n, sample_rate, band_shape(0.6 * params.hz, 4 * params.hz, 1))
    swell = 1 + 0.1 * wander(rng, n, sample_rate, 1.5)
    count = max(int(params.rate * params.seconds), 1)
    onsets = rng.uniform(0.0, params.seconds, count)
    hz = params.hz * rng.uniform(0.7, 2.2, count)
    gains = rng.exponential(1.0, count).clip(0.2, 3.0)
    patter = grains(n, sample_rate, onsets, hz=hz, gains=gains, decay=0.0025)
    return 0.3 * hiss * swell + patter


def wind(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """Wind: gusts of low noise with a resonance that rises as they swell [n]."""
    t = time_axis(n, sample_rate)
    drift = wander(rng, n, sample_rate, 1.5 * params.rate)
    cycle = np.sin(2 * np.pi * (params.rate * t + rng.uniform()) + 0.5 * drift)
    gust = (0.5 + 0.45 * cycle) ** 1.5
    body = coloured_noise(rng, n, sample_rate, band_shape(0.4 * params.hz, 1.1 * params.hz, 1.5))
    # A narrow band around a moving centre: slow complex noise that modulates an oscillator.
    width = 0.12 * params.hz
    slow = wander(rng, n, sample_rate, width) + 1j * wander(rng, n, sample_rate, width)
    centre = params.hz * (0.9 + 0.8 * gust)
    howl = (slow * np.exp(1j * phase_of(centre, sample_rate))).real
    return gust * (0.6 * body + 0.8 * gust * howl) + 0.05 * body


def drops(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """Water drops: bubbles of rising pitch, each with two fainter echoes of the basin [n]."""
    onsets = onset_times(rng, params, 0.35)
    hz = params.hz * rng.uniform(0.9, 1.1, onsets.size)
    gains = rng.uniform(0.6, 1.0, onsets.size)
    gains[0] = 1.0
    delay = rng.uniform(0.05, 0.08)
    times = np.concatenate([onsets, onsets + delay, onsets + 2.3 * delay])
    fading = np.concatenate([gains, 0.25 * gains, 0.1 * gains])
    hz = np.tile(hz, 3)
    return grains(n, sample_rate, times, hz=hz, gains=fading, decay=0.022, sweep=4.0)


def birds(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """Birdsong: short whistled notes that glide and warble, with pauses between phrases [n]."""
    onsets = onset_times(rng, params, 0.2)
    count = onsets.size
    silent = rng.uniform(size=count) < 0.15
    silent[:2] = False
    centre = params.hz * rng.uniform(0.95, 1.05, count)
    glide = rng.choice([-1.0, 1.0], count) * rng.uniform(0.04, 0.07, count)
    warble = rng.uniform(0.0, 0.02, count)
    speed = rng.uniform(22.0, 35.0, count)
    length = np.minimum(rng.uniform(0.09, 0.16, count), 0.75 / params.rate)
    which, local = since_onset(onsets, n, sample_rate)
    u = np.clip(local / length[which], 0.0, 1.0)
    # The integral of centre * (1 + glide cos(pi u) + warble cos(2 pi speed t)) in closed form
    turns = local + glide[which] * length[which] / np.pi * np.sin(np.pi * u)
    turns += warble[which] * np.sin(2 * np.pi * speed[which] * local) / (2 * np.pi * speed[which])
    gains = np.array([1.0, 0.12]) * below_edge(params.hz * 1.12 * np.array([1.0, 2.0]), sample_rate)
    wave = harmonics(np.exp(2j * np.pi * centre[which] * turns), gains)
    return wave * np.sin(np.pi * u) ** 2 * ~silent[which]


def engine(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """An engine: uneven pulses at half the firing rate, and exhaust noise [n]."""
    uneven = 1 + 0.015 * wander(rng, n, sample_rate, 3.0) + 0.01 * wander(rng, n, sample_rate, 20.0)
    phase = phase_of(0.5 * params.hz * uneven, sample_rate)
    count = int(min(32, EDGE * sample_rate / (0.55 * params.hz)))
    k = np.arange(1.0, count + 1)
    odd = np.where(k % 2 == 1, rng.uniform(0.25, 0.5), 1.0)  # cylinders differ: weaker half orders
    gains = odd * k**-0.6 * np.exp(-k / 12.0) * rng.uniform(0.6, 1.0, count)
    gains *= below_edge(0.5 * params.hz * 1.1 * k, sample_rate)
    pulses = harmonics(np.exp(1j * phase), gains)
    exhaust = coloured_noise(rng, n, sample_rate, band_shape(4 * params.hz, 25 * params.hz, 1.5))
    return pulses + 0.35 * exhaust * np.clip(0.5 + 0.5 * np.cos(2 * phase), 0.0, 1.0) ** 3


_STROKES: Rates = ((1.0, 1.4), (2.2, 2.9), (5.0, 7.0))
_WAILS: Rates = ((0.4, 0.6), (1.0, 1.4), (3.0, 4.5))
_PATTER: Rates = ((12, 20), (50, 80), (180, 280))
_GUSTS: Rates = ((0.35, 0.5), (0.9, 1.3), (2.4, 3.2))
_DRIPS: Rates = ((1.0, 1.5), (2.6, 3.6), (6.5, 9.0))
_NOTES: Rates = ((1.8, 2.4), (3.8, 5.0), (8.0, 10.0))


def _sound_kind(render: Render, hz: Rates, rates: Rates | None, noisy: bool = False) -> SoundKind:
    tempos = dict(zip(TEMPOS, rates, strict=True)) if rates else {}
    return SoundKind(render, dict(zip(PITCHES, hz, strict=True)), tempos, noisy)


# The ranges of a kind leave gaps between words, and no sweep exceeds 3.6 kHz, so that all kinds fit
# in audio of 8 kHz.
KINDS: Mapping[str, SoundKind] = {
    "tone": _sound_kind(tone, ((110, 220), (350, 650), (1200, 2400)), None),
    "chirp": _sound_kind(chirp, ((110, 180), (320, 500), (850, 1150)), _STROKES),
    "pluck": _sound_kind(pluck, ((90, 150), (230, 380), (600, 1000)), _STROKES),
    "bell": _sound_kind(bell, ((170, 260), (420, 650), (1000, 1400)), _STROKES),
    "drum": _sound_kind(drum, ((45, 70), (100, 150), (230, 340)), _STROKES),
    "noise": _sound_kind(noise, ((250, 400), (750, 1100), (2000, 2800)), _STROKES, noisy=True),
    "siren": _sound_kind(siren, ((300, 400), (600, 800), (1200, 1600)), _WAILS),
    "rain": _sound_kind(rain, ((300, 450), (800, 1100), (1900, 2600)), _PATTER, noisy=True),
    "wind": _sound_kind(wind, ((130, 200), (300, 450), (750, 1100)), _GUSTS, noisy=True),
    "drops": _sound_kind(drops, ((350, 500), (800, 1100), (1700, 2300)), _DRIPS),
    "birds": _sound_kind(birds, ((1000, 1300), (1700, 2100), (2600, 3000)), _NOTES),
    "engine": _sound_kind(engine, ((24, 36), (50, 75), (100, 150)), None),
}
