"""Twelve kinds of sound, each one function of (rng, samples, sample rate, parameters).

Every sound is defined in continuous time, in Hz and seconds, and only then sampled: partials stop below 0.45
of the sample rate, onsets fall between samples, and noise is drawn per frequency bin from low to high. The
same stream of random numbers therefore describes the same sound at every sample rate; a lower rate only hears
less of its treble. Nothing here normalises: amplitudes are relative, the caller sets the level.

The models are textbook ones: additive synthesis, exponentially damped modes (bell, pluck), a pitch-dropping
membrane (drum), Minnaert-like bubbles of rising pitch (drops), filtered noise (rain, wind).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

Array = npt.NDArray[np.floating[Any]]
ComplexArray = npt.NDArray[np.complex128]
Gain = Callable[[Array], Array]
Range = tuple[float, float]
Rates = tuple[Range, Range, Range]

PITCHES = ("low", "mid", "high")
TEMPOS = ("slow", "steady", "fast")
EDGE = 0.45  # highest frequency of any partial, as a share of the sample rate
REFERENCE_TOP = 19200.0  # Hz; the power of noise is reckoned up to here at every sample rate
LOWEST_RATE = 8000  # Hz; below it the high birds and noises would lie past the edge


@dataclass(frozen=True)
class Params:
    """What a caption fixes of one event: pitch `hz`, `rate` in events (or cycles) per second, `seconds`."""

    hz: float
    rate: float
    seconds: float


Render = Callable[[np.random.Generator, int, int, Params], Array]


@dataclass(frozen=True)
class Kind:
    """A kind of event: how it sounds, and what its words mean in numbers."""

    render: Render
    hz: Mapping[str, Range]
    """Pitch in Hz that each of `PITCHES` is drawn from."""
    rates: Mapping[str, Range]
    """Events per second that each of `TEMPOS` is drawn from; empty where tempo has no meaning."""
    noisy: bool = False
    """No definite pitch: captions say dull and bright rather than low and high."""


# --- building blocks ------------------------------------------------------------------------------


def _time(n: int, sample_rate: int) -> Array:
    """Seconds [n]."""
    return np.arange(n) / sample_rate


def _passes(hz: Array | float, sample_rate: int) -> Array:
    """1 up to 0.40 of the sample rate, 0 from `EDGE` on, linear between: no partial pops in or out."""
    return np.clip((EDGE - np.asarray(hz) / sample_rate) / 0.05, 0.0, 1.0)


def _phase(hz: Array, sample_rate: int) -> Array:
    """Phase in radians [n] of instantaneous frequency `hz` [n] (trapezoid rule, so that no rate drifts)."""
    steps = np.empty_like(hz)
    steps[0] = 0.0
    steps[1:] = 0.5 * (hz[1:] + hz[:-1])
    return 2 * np.pi / sample_rate * np.cumsum(steps)


def _harmonics(z: ComplexArray, gains: Array) -> Array:
    """Im sum_k gains[k-1] z^k [n] by Horner's rule, a product per harmonic, not a sine; gains [K] or [K, n]."""
    total = np.zeros_like(z)
    for gain in gains[::-1]:
        total += gain
        total *= z
    return total.imag


def _noise(
    rng: np.random.Generator, n: int, sample_rate: int, gain: Gain, limit: float = REFERENCE_TOP
) -> Array:
    """Gaussian noise [n] of RMS near 1 with spectral magnitude `gain(hz)`, nothing of it beyond `limit` Hz.

    Bins are drawn in order of frequency from a child stream: a higher rate draws more of them, and that
    changes neither the bins shared with a lower rate nor what the parent stream draws next.
    """
    child = rng.spawn(1)[0]
    top = float(min(EDGE * sample_rate, limit))
    hz = np.arange(1, min(int(top * n / sample_rate), n // 2) + 1) * (sample_rate / n)
    shape = gain(hz)
    # the power of the whole sound, heard or not, so that a lower rate does not turn up what it keeps
    unheard = np.linspace(top, max(limit, top), 65)
    tail = np.trapezoid(gain(unheard) ** 2, unheard) * n / sample_rate
    power = float(np.sqrt(4.0 * (np.sum(shape**2) + tail)))
    bins = np.zeros(n // 2 + 1, dtype=np.complex128)
    bins[1 : hz.size + 1] = child.standard_normal((hz.size, 2)).view(np.complex128)[:, 0]
    bins[1 : hz.size + 1] *= shape * _passes(hz, sample_rate) * (n / max(power, 1e-9))
    return np.fft.irfft(bins, n)


def _band(low: float, high: float, order: float = 4.0) -> Gain:
    """Magnitude of a band from `low` to `high` Hz that falls with `order` x 6 dB per octave outside."""

    def gain(hz: Array) -> Array:
        f = np.log(np.maximum(hz, 1.0))
        below = np.exp(2 * order * (np.log(low) - f))
        above = np.exp(2 * order * (f - np.log(high)))
        return 1.0 / np.sqrt((1 + below) * (1 + above))

    return gain


def _wander(rng: np.random.Generator, n: int, sample_rate: int, hz: float) -> Array:
    """A smooth random curve [n] of RMS near 1 that changes about `hz` times per second."""
    return _noise(rng, n, sample_rate, lambda f: np.exp(-((f / hz) ** 2)), limit=3.5 * hz)


def _onsets(rng: np.random.Generator, params: Params, jitter: float) -> Array:
    """Times in seconds of repeated events; the first comes at once, so that a short clip is never empty."""
    count = int(params.seconds * params.rate * 1.6 / (1 - jitter)) + 2
    gaps = rng.uniform(1 - jitter, 1 + jitter, count) / params.rate
    times = 0.01 + np.concatenate([[0.0], np.cumsum(gaps)[:-1]])
    return times[times < max(params.seconds - 0.04, 0.011)]


def _since(onsets: Array, n: int, sample_rate: int) -> tuple[npt.NDArray[np.intp], Array]:
    """Index of each sample's last onset [n], and the seconds since it (negative before the first) [n]."""
    t = _time(n, sample_rate)
    which = np.searchsorted(onsets, t, side="right") - 1
    first = np.maximum(which, 0)
    return first, t - onsets[first]


def _struck(local: Array, attack: float) -> Array:
    """Linear attack over `attack` seconds after an event's onset, 0 before the first onset [n]."""
    return np.clip(local / attack, 0.0, 1.0)


def _damped_out(which: npt.NDArray[np.intp], n: int, sample_rate: int) -> Array:
    """1, falling to 0 over 4 ms before each later onset: the next stroke silences a struck body [n]."""
    gate = np.ones(n)
    width = max(int(0.004 * sample_rate), 2)
    for start in np.flatnonzero(np.diff(which)) + 1:
        ramp = np.linspace(1.0, 0.0, width)[-min(width, int(start)) :]
        gate[start - ramp.size : start] *= ramp
    return gate


def _grains(
    n: int,
    sample_rate: int,
    onsets: Array,
    hz: Array,
    gains: Array,
    decay: float,
    sweep: float = 0.0,
) -> Array:
    """Sum of damped sines [n] that start at `onsets` [M] with `hz` [M], rising by `sweep` per second."""
    length = min(n, int(5 * decay * sample_rate) + 2)
    start = np.ceil(onsets * sample_rate).astype(np.intp)
    index = start[:, None] + np.arange(length)
    local = index / sample_rate - onsets[:, None]
    wave = np.sin(2 * np.pi * hz[:, None] * (local + 0.5 * sweep * local**2)) * np.exp(
        -local / decay
    )
    wave *= (
        np.clip((5 * decay - local) / decay, 0.0, 1.0) * (gains * _passes(hz, sample_rate))[:, None]
    )
    keep = index < n
    return np.bincount(index[keep], weights=wave[keep], minlength=n).astype(np.float64)


# --- the kinds ------------------------------------------------------------------------------------


def tone(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """A held, nearly pure tone with a soft attack and a slight vibrato [n]."""
    t = _time(n, sample_rate)
    depth = rng.uniform(0.0, 0.004)
    speed = rng.uniform(4.5, 6.0)
    colour = rng.uniform(0.02, 0.12)
    hz = params.hz * (1 + depth * np.sin(2 * np.pi * speed * t))
    gains = np.array([1.0, colour, 0.5 * colour]) * _passes(
        params.hz * np.arange(1.0, 4.0), sample_rate
    )
    ends = np.minimum(t / 0.04, (params.seconds - t) / 0.12)
    return _harmonics(np.exp(1j * _phase(hz, sample_rate)), gains) * np.clip(ends, 0.0, 1.0)


def chirp(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """Sweeps that rise by a factor of three, one after another [n]."""
    ratio = 3.0
    cycles = _time(n, sample_rate) * params.rate
    u = cycles - np.floor(cycles)
    sounding = rng.uniform(0.75, 0.9)
    u = np.minimum(u / sounding, 1.0)
    length = sounding / params.rate
    phase = 2 * np.pi * params.hz * length / np.log(ratio) * (ratio**u - 1)
    edges = np.minimum(u, 1 - u) * length / 0.012
    return np.sin(phase) * np.clip(edges, 0.0, 1.0)


def pluck(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """A plucked string: harmonics that decay faster the higher they are, on four neighbouring notes [n]."""
    onsets = _onsets(rng, params, 0.06)
    notes = params.hz * rng.choice([0.891, 1.0, 1.122, 1.189], onsets.size)
    position = rng.uniform(0.12, 0.3)
    damping = rng.uniform(0.7, 1.2)
    which, local = _since(onsets, n, sample_rate)
    local = np.maximum(local, 0.0)
    count = int(min(30, EDGE * sample_rate / notes.max()))
    k = np.arange(1.0, count + 1)
    gains = np.sin(np.pi * k * position) / k * _passes(k * notes.max(), sample_rate)
    z = np.exp((2j * np.pi * notes[which] - damping) * local)
    wave = _harmonics(z, gains) * np.exp(-1.8 * local)
    return wave * _struck(local, 0.001) * _damped_out(which, n, sample_rate)


def bell(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """A bell: inharmonic modes (hum, prime, tierce, quint, nominal, ...) that ring on through strokes [n].

    Each mode is a complex one-pole resonator; a stroke between two samples enters with its phase by then.
    """
    onsets = _onsets(rng, params, 0.05)
    force = rng.uniform(0.75, 1.0, onsets.size)
    ratios = np.array([0.5, 1.0, 1.19, 1.5, 2.0, 2.51, 2.66, 3.01, 4.17, 5.43])
    ratios = ratios * (1 + rng.uniform(-0.006, 0.006, ratios.size))
    gains = np.array([0.45, 1.0, 0.75, 0.4, 0.9, 0.35, 0.4, 0.35, 0.3, 0.22])
    gains = gains * rng.uniform(0.8, 1.2, ratios.size) * _passes(ratios * params.hz, sample_rate)
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
    onsets = _onsets(rng, params, 0.04)
    force = rng.uniform(0.6, 1.0, onsets.size)
    force[0] = 1.0
    slap = rng.uniform(0.12, 0.3)
    length = rng.uniform(0.07, 0.13)
    which, local = _since(onsets, n, sample_rate)
    local = np.maximum(local, 0.0)
    bend = 0.03
    turns = params.hz * (local + 1.5 * bend * (1 - np.exp(-local / bend)))
    skin = np.sin(2 * np.pi * turns) + 0.35 * np.sin(2 * np.pi * 1.59 * turns) * np.exp(
        -local / 0.04
    )
    skin *= np.exp(-local / length)
    stick = _noise(rng, n, sample_rate, _band(4 * params.hz, 14 * params.hz, 2)) * np.exp(
        -local / 0.012
    )
    return (
        (skin + slap * stick)
        * force[which]
        * _struck(local, 0.001)
        * _damped_out(which, n, sample_rate)
    )


def noise(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """Bursts of band-limited noise, switched on and off [n]."""
    share = rng.uniform(0.45, 0.6)
    cycles = _time(n, sample_rate) * params.rate
    u = cycles - np.floor(cycles)
    gate = np.clip(np.minimum(u, share - u) / params.rate / 0.004, 0.0, 1.0)
    return _noise(rng, n, sample_rate, _band(params.hz / 1.5, params.hz * 1.5, 6)) * gate


def siren(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """A siren: a bright tone whose pitch wails up and down over most of an octave [n]."""
    t = _time(n, sample_rate)
    octaves = rng.uniform(0.7, 0.9)
    swing = np.sin(2 * np.pi * (params.rate * t + rng.uniform()))
    hz = params.hz * 2 ** (0.5 * octaves * swing)
    k = np.arange(1.0, 9.0)
    # moment by moment: a harmonic that leaves the band at the top of the wail is there at its bottom
    gains = k[:, None] ** -1.1 * _passes(k[:, None] * hz, sample_rate)
    return _harmonics(np.exp(1j * _phase(hz, sample_rate)), gains)


def rain(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """Rain: a broad hiss and the patter of single drops, `rate` of them per second [n]."""
    hiss = _noise(rng, n, sample_rate, _band(0.6 * params.hz, 4 * params.hz, 1))
    swell = 1 + 0.1 * _wander(rng, n, sample_rate, 1.5)
    count = max(int(params.rate * params.seconds), 1)
    onsets = rng.uniform(0.0, params.seconds, count)
    hz = params.hz * rng.uniform(0.7, 2.2, count)
    gains = rng.exponential(1.0, count).clip(0.2, 3.0)
    patter = _grains(n, sample_rate, onsets, hz, gains, 0.0025)
    return 0.3 * hiss * swell + patter


def wind(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """Wind: gusts of low noise with a resonance that rises as they swell [n]."""
    t = _time(n, sample_rate)
    drift = _wander(rng, n, sample_rate, 1.5 * params.rate)
    cycle = np.sin(2 * np.pi * (params.rate * t + rng.uniform()) + 0.5 * drift)
    gust = (0.5 + 0.45 * cycle) ** 1.5
    body = _noise(rng, n, sample_rate, _band(0.4 * params.hz, 1.1 * params.hz, 1.5))
    # a narrow band around a moving centre: slow complex noise that rides on an oscillator
    width = 0.12 * params.hz
    slow = _wander(rng, n, sample_rate, width) + 1j * _wander(rng, n, sample_rate, width)
    centre = params.hz * (0.9 + 0.8 * gust)
    howl = (slow * np.exp(1j * _phase(centre, sample_rate))).real
    return gust * (0.6 * body + 0.8 * gust * howl) + 0.05 * body


def drops(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """Water drops: bubbles of rising pitch, each with two fainter echoes of the basin [n]."""
    onsets = _onsets(rng, params, 0.35)
    hz = params.hz * rng.uniform(0.9, 1.1, onsets.size)
    gains = rng.uniform(0.6, 1.0, onsets.size)
    gains[0] = 1.0
    delay = rng.uniform(0.05, 0.08)
    times = np.concatenate([onsets, onsets + delay, onsets + 2.3 * delay])
    fading = np.concatenate([gains, 0.25 * gains, 0.1 * gains])
    return _grains(n, sample_rate, times, np.tile(hz, 3), fading, decay=0.022, sweep=4.0)


def birds(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """Birdsong: short whistled notes that glide and warble, with pauses between phrases [n]."""
    onsets = _onsets(rng, params, 0.2)
    count = onsets.size
    silent = rng.uniform(size=count) < 0.15
    silent[:2] = False
    centre = params.hz * rng.uniform(0.95, 1.05, count)
    glide = rng.choice([-1.0, 1.0], count) * rng.uniform(0.04, 0.07, count)
    warble = rng.uniform(0.0, 0.02, count)
    speed = rng.uniform(22.0, 35.0, count)
    length = np.minimum(rng.uniform(0.09, 0.16, count), 0.75 / params.rate)
    which, local = _since(onsets, n, sample_rate)
    u = np.clip(local / length[which], 0.0, 1.0)
    # the integral of centre * (1 + glide cos(pi u) + warble cos(2 pi speed t)) in closed form
    turns = local + glide[which] * length[which] / np.pi * np.sin(np.pi * u)
    turns += warble[which] * np.sin(2 * np.pi * speed[which] * local) / (2 * np.pi * speed[which])
    gains = np.array([1.0, 0.12]) * _passes(params.hz * 1.12 * np.array([1.0, 2.0]), sample_rate)
    wave = _harmonics(np.exp(2j * np.pi * centre[which] * turns), gains)
    return wave * np.sin(np.pi * u) ** 2 * ~silent[which]


def engine(rng: np.random.Generator, n: int, sample_rate: int, params: Params) -> Array:
    """An engine: pulses at half the firing rate, uneven from stroke to stroke, and exhaust noise [n]."""
    uneven = (
        1 + 0.015 * _wander(rng, n, sample_rate, 3.0) + 0.01 * _wander(rng, n, sample_rate, 20.0)
    )
    phase = _phase(0.5 * params.hz * uneven, sample_rate)
    count = int(min(32, EDGE * sample_rate / (0.55 * params.hz)))
    k = np.arange(1.0, count + 1)
    odd = np.where(k % 2 == 1, rng.uniform(0.25, 0.5), 1.0)  # cylinders differ: weaker half orders
    gains = odd * k**-0.6 * np.exp(-k / 12.0) * rng.uniform(0.6, 1.0, count)
    gains *= _passes(0.5 * params.hz * 1.1 * k, sample_rate)
    pulses = _harmonics(np.exp(1j * phase), gains)
    exhaust = _noise(rng, n, sample_rate, _band(4 * params.hz, 25 * params.hz, 1.5))
    return pulses + 0.35 * exhaust * np.clip(0.5 + 0.5 * np.cos(2 * phase), 0.0, 1.0) ** 3


_STROKES: Rates = ((1.0, 1.4), (2.2, 2.9), (5.0, 7.0))
_WAILS: Rates = ((0.4, 0.6), (1.0, 1.4), (3.0, 4.5))
_PATTER: Rates = ((12, 20), (50, 80), (180, 280))
_GUSTS: Rates = ((0.35, 0.5), (0.9, 1.3), (2.4, 3.2))
_DRIPS: Rates = ((1.0, 1.5), (2.6, 3.6), (6.5, 9.0))
_NOTES: Rates = ((1.8, 2.4), (3.8, 5.0), (8.0, 10.0))


def _kind(render: Render, hz: Rates, rates: Rates | None, noisy: bool = False) -> Kind:
    tempos = dict(zip(TEMPOS, rates, strict=True)) if rates else {}
    return Kind(render, dict(zip(PITCHES, hz, strict=True)), tempos, noisy)


# the ranges of a kind leave gaps between words, and no sweep passes 3.6 kHz: all of them fit in 8 kHz audio
KINDS: Mapping[str, Kind] = {
    "tone": _kind(tone, ((110, 220), (350, 650), (1200, 2400)), None),
    "chirp": _kind(chirp, ((110, 180), (320, 500), (850, 1150)), _STROKES),
    "pluck": _kind(pluck, ((90, 150), (230, 380), (600, 1000)), _STROKES),
    "bell": _kind(bell, ((170, 260), (420, 650), (1000, 1400)), _STROKES),
    "drum": _kind(drum, ((45, 70), (100, 150), (230, 340)), _STROKES),
    "noise": _kind(noise, ((250, 400), (750, 1100), (2000, 2800)), _STROKES, noisy=True),
    "siren": _kind(siren, ((300, 400), (600, 800), (1200, 1600)), _WAILS),
    "rain": _kind(rain, ((300, 450), (800, 1100), (1900, 2600)), _PATTER, noisy=True),
    "wind": _kind(wind, ((130, 200), (300, 450), (750, 1100)), _GUSTS, noisy=True),
    "drops": _kind(drops, ((350, 500), (800, 1100), (1700, 2300)), _DRIPS),
    "birds": _kind(birds, ((1000, 1300), (1700, 2100), (2600, 3000)), _NOTES),
    "engine": _kind(engine, ((24, 36), (50, 75), (100, 150)), None),
}
