"""Up to which frequency a recording has content: resampling up and lossy codecs leave none above.

`bandwidth` says how far up anything can be measured, and `cutoff_of` where a filter has cut. A dark
recording, which sinks into the noise of its format, has a low bandwidth and no cutoff. No torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from stagecli.data.decoding import file_problem, open_audio
from stagecli.data.undecodable import UndecodableError
from stagecli.dsp.blocks import overlapping
from stagecli.errors import Problem, StageError

SECONDS = 20.0  # measured per file, from its start
NARROW = 0.85  # content that ends below this share of the Nyquist frequency leaves a band empty
EMPTY_DB = 90.0  # a bin this far below the loudest one is empty
NOISE_DB = 10.0  # noise exceeds that of plain rounding by less: triangular dither, and chance
BITS = (8, 16, 24)  # word lengths that are recognised
GROUP = 16  # bins that decide together, because single ones vary too much
KAISER = 14.0  # shape of the window: what leaks beyond 5 bins is 105 dB below
AT_ONCE = 256  # frames that are transformed together
# The edge that a filter leaves.
LONGEST = 4096  # audio samples of a frame
FRAMES = 8  # short audio is cut into so many frames, before overlap, as far as it goes
CELLS = 12  # cells an octave, whose medians are compared
CELL_BINS = 4  # a cell has at least so many bins; lower frequencies are not searched
GUARD = 2  # cells that the slope of a resampler fits into, from its start to well below
LASTS = 3  # cells that the floor has at least
DROP_DB = 12.0  # across the guard, and to everything above it
SLOPE_DB = 2.0  # the slope starts where the level has fallen by so much


def file_bandwidth(audio: Path | bytes) -> float:
    """Hz up to which an audio file, or its bytes, has content. Silence counts as full-band.

    Raises StageError where it cannot be decoded.
    """
    try:
        with open_audio(audio) as stream:
            rate = stream.sample_rate
            wanted = round(SECONDS * rate)
            blocks = []
            decoded = 0
            for block_NC in stream.blocks():
                blocks.append(block_NC)
                decoded += len(block_NC)
                if decoded >= wanted:
                    break
    except (OSError, UndecodableError) as error:
        where = str(audio) if isinstance(audio, Path) else "audio"
        problem = file_problem(error) if isinstance(error, OSError) else str(error)
        raise StageError("cannot read audio", problems=[Problem(where, problem)]) from error
    return widest_bandwidth(np.concatenate(blocks)[:wanted], rate)


def content_end(audio_N: np.ndarray, sample_rate: int) -> float:
    """Hz at which the content of mono audio [N] ends; half the rate if it fills its band.

    It ends at the edge that a filter or a lossy codec has left, even if something is left above.
    """
    measured_N = audio_N[: round(SECONDS * sample_rate)]
    if not np.any(measured_N):
        return sample_rate / 2
    edge = cutoff_of([measured_N[:, None]], sample_rate)
    end = min(edge, bandwidth(measured_N, sample_rate))
    return end if end < NARROW * sample_rate / 2 else sample_rate / 2


def widest_bandwidth(audio_NC: np.ndarray, sample_rate: int) -> float:
    """The largest bandwidth in Hz of the channels of audio [N, C]. Silent ones do not count.

    They are measured apart, because their mean has a longer word and other noise. Silence counts as
    full-band.
    """
    audible = [channel for channel in audio_NC.T if np.any(channel)]
    return max((bandwidth(channel, sample_rate) for channel in audible), default=sample_rate / 2)


def bandwidth(audio_N: np.ndarray, sample_rate: int) -> float:
    """Hz up to which audio has content: within EMPTY_DB of the loudest bin, and above the noise.

    The noise is that of rounding to the word length of the samples. Bins are powers averaged over
    time. Silence, and noise of rounding alone, count as full-band.
    """
    size = _frame_size(len(audio_N))
    window = np.kaiser(size, KAISER)
    noise = rounding_noise(audio_N)
    power_F = _mean_power(audio_N, window)
    loudest = power_F.max() * 10 ** (-EMPTY_DB / 10)

    # Tones: a bin counts by what it adds to the mean of those above it. Rounding that is not even
    # makes tones too, of one step of the word length at most (its variance is step^2 / 12).
    # All bins of such a tone together have the power of its largest one times the window's width.
    tone = 12 * noise / 4 * size * np.sum(window**2)
    mean_F = np.convolve(power_F, np.ones(GROUP) / GROUP, mode="valid")
    tones = np.nonzero(mean_F > max(loudest, tone) / GROUP)[0]
    # The last bins share one mean.
    highest = power_F.size if tones.size and tones[-1] == mean_F.size - 1 else tones.max(initial=-1)

    # Everything else: bins of a group whose median, which a tone does not raise, exceeds the noise.
    noisy = max(loudest, noise * np.sum(window**2) * 10 ** (NOISE_DB / 10))
    inner_F = power_F[:-1]
    median_G = np.median(inner_F.reshape(-1, GROUP), axis=1)
    broad = np.nonzero((inner_F > noisy) & np.repeat(median_G > noisy, GROUP))[0]
    end = 1 + max(highest, broad.max(initial=-1))
    return float(min(end / size, 0.5) * sample_rate) if end > 0 else sample_rate / 2


def rounding_noise(audio_N: np.ndarray) -> float:
    """Variance of the rounding of samples [N] to their word length; 0 for float samples.

    The samples tell it, not the file: 16-bit audio in a 24-bit or float file has the same noise.
    """
    for bits in BITS:
        scale = np.float32(2 ** (bits - 1))
        if np.array_equal(audio_N * scale, np.rint(audio_N * scale)):
            return float(2.0 ** (2 - 2 * bits) / 12)
    return 0.0


def cutoff_of(blocks: Iterable[np.ndarray], sample_rate: int) -> float:
    """Hz at which a filter starts to cut audio, given in blocks [n, C]; half the rate if none does.

    Of several channels the highest counts, and silent ones do not. Memory does not grow with the
    length.
    """
    total_CF: np.ndarray | None = None
    frames = 0
    size = 0
    part = 16 * LONGEST
    for audio_NC in overlapping(blocks, part, part - LONGEST // 2):
        if total_CF is None:
            size = _frame_size(len(audio_NC) // FRAMES)
            total_CF = np.zeros((audio_NC.shape[1], size // 2 + 1))
        elif len(audio_NC) < size:
            break
        window = np.kaiser(size, KAISER)
        powers = [_power(channel, window) for channel in audio_NC.T]
        total_CF += [power_F for power_F, _ in powers]
        frames += powers[0][1]
    if total_CF is None or frames < FRAMES / 2:  # too short to tell
        return sample_rate / 2
    edges = [_edge(power_F / frames) for power_F in total_CF if np.any(power_F)]
    return max((edge * sample_rate for edge in edges), default=sample_rate / 2)


def _edge(power_F: np.ndarray) -> float:
    """Start of the drop to a floor that lasts up to Nyquist, as a share of the rate; 0.5: none.

    Levels are medians of cells of equal ratio, which tones do not raise. A steady slope is no drop,
    however steep: recordings have those, where they sink into noise.
    """
    size = 2 * (len(power_F) - 1)
    lowest = CELL_BINS / (2 ** (1 / CELLS) - 1)
    count = int(CELLS * math.log2(max(size / 2 / lowest, 1.0)))
    edges_K = np.rint(size / 2 * 2.0 ** (np.arange(-count, 1) / CELLS)).astype(int)
    decibels_F = 10 * np.log10(power_F + 1e-30)
    level_K = np.array([np.median(decibels_F[a:b]) for a, b in itertools.pairwise(edges_K)])

    # The best of all places: what falls there beyond the slope that leads to it.
    best = DROP_DB
    place = 0
    for k in range(2 * GUARD, count - GUARD - LASTS + 1):
        below = level_K[k - GUARD : k].mean()
        tilt = max(0.0, level_K[k - 2 * GUARD : k - GUARD].mean() - below)
        # From the middle of the cells below to that of the first above.
        slope = tilt * (1.5 * GUARD + 0.5) / GUARD
        drop = below - level_K[k + GUARD :].max() - slope
        if drop > best:
            best = drop
            place = k
    if place == 0:
        return 0.5

    # Within it, the last bin that has not fallen.
    first = edges_K[place - 2 * GUARD]
    smooth_F = 10 * np.log10(np.convolve(power_F, np.ones(GROUP) / GROUP, mode="same") + 1e-30)
    reference = np.median(smooth_F[first : edges_K[place]])
    inside_F = smooth_F[first : edges_K[place + GUARD]]
    return float((first + 1 + np.nonzero(inside_F >= reference - SLOPE_DB)[0].max()) / size)


def _frame_size(length: int) -> int:
    return min(LONGEST, max(256, 2 ** int(math.log2(max(length, 256)))))


def _mean_power(audio_N: np.ndarray, window: np.ndarray) -> np.ndarray:
    """|X|^2 of each bin, averaged over windows that overlap by half."""
    total_F, frames = _power(audio_N, window)
    return total_F / frames


def _power(audio_N: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, int]:
    """|X|^2 of each bin, added up over windows that overlap by half, and their number."""
    size = len(window)
    if len(audio_N) < size:
        audio_N = np.pad(audio_N * np.hanning(len(audio_N)), (0, size - len(audio_N)))
    # Whole frames only: a frame that reaches past an abrupt end would contain a step, which is
    # full-band.
    frames = np.lib.stride_tricks.sliding_window_view(audio_N, size)[:: size // 2]
    total_F = np.zeros(size // 2 + 1)
    for start in range(0, len(frames), AT_ONCE):
        spectrum = np.fft.rfft(frames[start : start + AT_ONCE] * window, axis=1)
        total_F += np.sum(np.abs(spectrum) ** 2, axis=0)
    return total_F, len(frames)
