"""Up to which frequency a recording has content: resampling up and lossy codecs leave none above.

No torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stagecli.data.decoding import UndecodableError, file_problem, open_audio
from stagecli.errors import Problem, StageError

SECONDS = 20.0  # measured per file, from its start
WINDOW = 2048
KAISER = 14.0  # shape of the window: what leaks beyond 5 bins is 105 dB below
BINS = 8  # neighbouring bins that are averaged, because the power of noise varies
EMPTY_DB = 90.0  # a band this far below the loudest one counts as empty, at any resolution
RESOLUTIONS = (8, 16)  # bits per sample that leave audible noise


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
    return bandwidth(np.concatenate(blocks)[:wanted], rate)


def bandwidth(audio_NC: np.ndarray, sample_rate: int) -> float:
    """Hz up to which the mean of the channels of audio [N, C] rises above what is not content.

    That is the noise of quantisation with dither, twice, and everything EMPTY_DB below the loudest
    band. Silence counts as full-band.
    """
    # The spectrum: whole windows only, as one that reaches past an abrupt end would contain a step,
    # which is full-band.
    audio_N = audio_NC.mean(axis=1, dtype=np.float64)
    if len(audio_N) < WINDOW:
        audio_N = np.pad(audio_N * np.hanning(len(audio_N)), (0, WINDOW - len(audio_N)))
    windows = np.lib.stride_tricks.sliding_window_view(audio_N, WINDOW)[:: WINDOW // 2]
    shape_N = np.kaiser(WINDOW, KAISER)
    power_F = np.mean(np.abs(np.fft.rfft(windows * shape_N, axis=1)) ** 2, axis=0)
    power_F = np.convolve(power_F, np.full(BINS, 1 / BINS), mode="same")
    if power_F.max() <= 0:
        return sample_rate / 2

    # The level below which there is no content.
    empty = power_F.max() * 10 ** (-EMPTY_DB / 10)
    bits = resolution(audio_NC)
    if bits is not None:
        # Uniform errors of one step have variance step^2 / 12; triangular dither makes it thrice.
        variance = 3 * (2.0 ** (1 - bits)) ** 2 / 12
        empty = max(empty, 2 * variance * float(np.sum(shape_N**2)))
    audible = np.nonzero(power_F > empty)[0]
    if not len(audible):  # a whisper at the level of the quantisation
        return sample_rate / 2
    last = audible[-1] + 1
    if last < len(power_F) - BINS // 2:
        last -= BINS // 2  # which the average over bins has added
    return float(min(last, WINDOW // 2) * sample_rate / WINDOW)


def resolution(audio_NC: np.ndarray) -> int | None:
    """Bits per sample if all of them fit into so few, whatever the file's format; else None."""
    for bits in RESOLUTIONS:
        steps_NC = audio_NC * 2.0 ** (bits - 1)
        if np.array_equal(steps_NC, np.rint(steps_NC)):
            return bits
    return None
