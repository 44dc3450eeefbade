"""Building blocks of the synthetic sounds: oscillators, noise, onsets and envelopes.

Everything is defined in continuous time, in Hz and seconds, and only then sampled: partials stop
below 0.45 of the sample rate, onsets fall between samples, and noise is drawn per frequency bin
from low to high. One stream of random numbers therefore describes one sound at every sample rate; a
lower rate only loses treble. n is the number of samples of a sound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
ComplexArray = npt.NDArray[np.complex128]
Gain = Callable[[Array], Array]

EDGE = 0.45  # highest frequency of any partial, as a share of the sample rate
REFERENCE_TOP = 19200.0  # Hz; noise is normalised by its power up to here at every sample rate


@dataclass(frozen=True)
class Params:
    """The properties of one event that its caption fixes.

    hz: pitch; rate: strokes (or cycles) per second; seconds: duration.
    """

    hz: float
    rate: float
    seconds: float


def time_axis(n: int, sample_rate: int) -> Array:
    """Time of each sample in seconds [n]."""
    return np.arange(n) / sample_rate


def below_edge(hz: Array | float, sample_rate: int) -> Array:
    """Gain of a partial: 1 up to 0.40 of the sample rate, 0 from `EDGE` on, linear in between."""
    return np.clip((EDGE - np.asarray(hz) / sample_rate) / 0.05, 0.0, 1.0)


def phase_of(hz: Array, sample_rate: int) -> Array:
    """Phase in radians [n] of instantaneous frequency `hz` [n].

    By the trapezoid rule, so that the phase does not drift with the sample rate.
    """
    steps = np.empty_like(hz)
    steps[0] = 0.0
    steps[1:] = 0.5 * (hz[1:] + hz[:-1])
    return 2 * np.pi / sample_rate * np.cumsum(steps)


def harmonics(z: ComplexArray, gains: Array) -> Array:
    """Im sum_k gains[k-1] z^k, [n], for gains [K] or [K, n].

    By Horner's rule: one product per harmonic instead of one sine.
    """
    total = np.zeros_like(z)
    for gain in gains[::-1]:
        total += gain
        total *= z
    return total.imag


def coloured_noise(
    rng: np.random.Generator, n: int, sample_rate: int, gain: Gain, limit: float = REFERENCE_TOP
) -> Array:
    """Gaussian noise [n] of RMS near 1 with spectral magnitude `gain(hz)` up to `limit` Hz.

    Bins are drawn in order of frequency from a child stream: a higher rate draws more of them,
    which changes neither the bins shared with a lower rate nor the next draw of the parent stream.
    """
    child = rng.spawn(1)[0]
    top = float(min(EDGE * sample_rate, limit))
    hz = np.arange(1, min(int(top * n / sample_rate), n // 2) + 1) * (sample_rate / n)
    shape = gain(hz)
    # Normalise by the power of the whole sound, so that a lower rate does not amplify the rest.
    beyond_edge = np.linspace(top, max(limit, top), 65)
    tail = np.trapezoid(gain(beyond_edge) ** 2, beyond_edge) * n / sample_rate
    power = float(np.sqrt(4.0 * (np.sum(shape**2) + tail)))
    bins = np.zeros(n // 2 + 1, dtype=np.complex128)
    bins[1 : hz.size + 1] = child.standard_normal((hz.size, 2)).view(np.complex128)[:, 0]
    bins[1 : hz.size + 1] *= shape * below_edge(hz, sample_rate) * (n / max(power, 1e-9))
    return np.fft.irfft(bins, n)


def band_shape(low: float, high: float, order: float = 4.0) -> Gain:
    """Magnitude of a band from `low` to `high` Hz, falling by `order` x 6 dB per octave outside."""

    def gain(hz: Array) -> Array:
        f = np.log(np.maximum(hz, 1.0))
        below = np.exp(2 * order * (np.log(low) - f))
        above = np.exp(2 * order * (f - np.log(high)))
        return 1.0 / np.sqrt((1 + below) * (1 + above))

    return gain


def wander(rng: np.random.Generator, n: int, sample_rate: int, hz: float) -> Array:
    """A smooth random curve [n] of RMS near 1 with frequencies up to about `hz`."""
    return coloured_noise(rng, n, sample_rate, lambda f: np.exp(-((f / hz) ** 2)), limit=3.5 * hz)


def onset_times(rng: np.random.Generator, params: Params, jitter: float) -> Array:
    """Times in seconds of repeated strokes, the first at once: a short clip is never empty."""
    count = int(params.seconds * params.rate * 1.6 / (1 - jitter)) + 2
    gaps = rng.uniform(1 - jitter, 1 + jitter, count) / params.rate
    times = 0.01 + np.concatenate([[0.0], np.cumsum(gaps)[:-1]])
    return times[times < max(params.seconds - 0.04, 0.011)]


def since_onset(onsets: Array, n: int, sample_rate: int) -> tuple[npt.NDArray[np.intp], Array]:
    """Index of each sample's last onset [n], and the seconds since it [n].

    Samples before the first onset get index 0 and negative times.
    """
    t = time_axis(n, sample_rate)
    which = np.searchsorted(onsets, t, side="right") - 1
    first = np.maximum(which, 0)
    return first, t - onsets[first]


def attack_ramp(local: Array, attack: float) -> Array:
    """Linear ramp over `attack` seconds after each onset, 0 before the first onset [n]."""
    return np.clip(local / attack, 0.0, 1.0)


def damped_before_strokes(which: npt.NDArray[np.intp], n: int, sample_rate: int) -> Array:
    """Gain [n] that falls to 0 over 4 ms before each later onset: a stroke damps the one before."""
    gate = np.ones(n)
    width = max(int(0.004 * sample_rate), 2)
    for start in np.flatnonzero(np.diff(which)) + 1:
        ramp = np.linspace(1.0, 0.0, width)[-min(width, int(start)) :]
        gate[start - ramp.size : start] *= ramp
    return gate


def grains(
    n: int,
    sample_rate: int,
    onsets: Array,
    *,
    hz: Array,
    gains: Array,
    decay: float,
    sweep: float = 0.0,
) -> Array:
    """Sum of damped sines [n] starting at `onsets` [M] with pitch `hz` [M].

    decay: time constant in seconds; sweep: relative rise in pitch per second.
    """
    length = min(n, int(5 * decay * sample_rate) + 2)
    start = np.ceil(onsets * sample_rate).astype(np.intp)
    index = start[:, None] + np.arange(length)
    local = index / sample_rate - onsets[:, None]
    wave = np.sin(2 * np.pi * hz[:, None] * (local + 0.5 * sweep * local**2)) * np.exp(
        -local / decay
    )
    wave *= (
        np.clip((5 * decay - local) / decay, 0.0, 1.0)
        * (gains * below_edge(hz, sample_rate))[:, None]
    )
    keep = index < n
    return np.bincount(index[keep], weights=wave[keep], minlength=n).astype(np.float64)
