"""Up to which frequency a recording has content: resampling up and lossy codecs leave none above.

Whatever its format adds as noise is no content. No torch.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from stagecli.data.decoding import UndecodableError, file_problem, open_audio
from stagecli.errors import Problem, StageError

SECONDS = 20.0  # measured per file, from its start
EMPTY_DB = 90.0  # a bin this far below the loudest one is empty
NOISE_DB = 10.0  # noise exceeds that of plain rounding by less: triangular dither, and chance
BITS = (8, 16, 24)  # word lengths that are recognised
GROUP = 16  # bins that decide together, because single ones vary too much
KAISER = 14.0  # shape of the window: what leaks beyond 5 bins is 105 dB below
AT_ONCE = 256  # frames that are transformed together


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
    size = min(4096, max(256, 2 ** int(math.log2(max(len(audio_N), 256)))))
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


def _mean_power(audio_N: np.ndarray, window: np.ndarray) -> np.ndarray:
    """|X|^2 of each bin, averaged over windows that overlap by half."""
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
    return total_F / len(frames)
