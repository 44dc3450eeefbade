"""A file as the model is given it: at the model's rate, in blocks, with what is known beforehand.

No torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stagecli.data.audio import read_blocks, read_format
from stagecli.dsp.blocks import overlapping
from stagecli.dsp.resample import resample_blocks

PART = 1 << 15  # audio samples whose spectrum is taken at once


@dataclass(frozen=True)
class LowAudio:
    """A file at `sample_rate` Hz.

    length: audio samples; audible_C: channels that are not silent; power: mean square of these,
    all together; correlation_CC: of these, in the octave below the cutoff.
    """

    file: Path
    sample_rate: int
    length: int
    audible_C: np.ndarray
    power: float
    correlation_CC: np.ndarray

    def blocks(self) -> Iterator[np.ndarray]:
        """The audio, [n, channels], silent channels included."""
        return resampled_blocks(self.file, self.sample_rate)


def resampled_blocks(file: Path, sample_rate: int) -> Iterator[np.ndarray]:
    """A file at `sample_rate` Hz, in blocks [n, channels], of the nearest length.

    Resampling alone rounds the length up. Raises StageError.
    """
    stored_rate, _ = read_format(file)
    stored = made = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal stored
        for block_NC in read_blocks(file):
            stored += len(block_NC)
            yield block_NC

    held_NC: np.ndarray | None = None  # the last block so far, which may be a sample too long
    for block_NC in resample_blocks(counted(), stored_rate, sample_rate):
        if held_NC is not None:
            yield held_NC
        held_NC = block_NC
        made += len(block_NC)
    if held_NC is not None:
        surplus = made - max(1, round(stored * sample_rate / stored_rate))
        yield held_NC[: len(held_NC) - surplus]


def measure(file: Path, sample_rate: int, cutoff: float) -> LowAudio:
    """Read a file once for what restoring it needs to know. Raises StageError."""
    _, channels = read_format(file)
    length = 0
    squares_C = np.zeros(channels)
    covariance_CC = np.zeros((channels, channels))
    for part_NC in overlapping(resampled_blocks(file, sample_rate), PART, PART):
        length += len(part_NC)
        squares_C += np.sum(np.square(part_NC, dtype=np.float64), axis=0)
        covariance_CC += _octave_covariance(part_NC, sample_rate, cutoff)
    audible_C = squares_C > 0
    power = float(squares_C[audible_C].mean() / length) if audible_C.any() else 0.0
    deviation_C = np.sqrt(np.maximum(np.diag(covariance_CC), 1e-30))
    correlation_CC = covariance_CC / np.outer(deviation_C, deviation_C)
    np.fill_diagonal(correlation_CC, 1.0)
    return LowAudio(
        file, sample_rate, length, audible_C, power, correlation_CC[np.ix_(audible_C, audible_C)]
    )


def _octave_covariance(audio_NC: np.ndarray, sample_rate: int, cutoff: float) -> np.ndarray:
    """Products of the channels [C, C], summed over the octave below the cutoff."""
    window_N1 = np.hanning(len(audio_NC) + 2)[1:-1, None]
    spectrum_FC = np.fft.rfft(audio_NC * window_N1, axis=0)
    hertz_F = np.fft.rfftfreq(len(audio_NC), 1 / sample_rate)
    octave_FC = spectrum_FC[(hertz_F >= cutoff / 2) & (hertz_F < cutoff)]
    return np.real(octave_FC.conj().T @ octave_FC)
