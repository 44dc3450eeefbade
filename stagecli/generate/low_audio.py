"""Audio as the model is given it: at the model's rate, in blocks, with what is known beforehand.

No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stagecli.data.audio import read_blocks, read_format
from stagecli.dsp.blocks import overlapping
from stagecli.dsp.resample import resample_blocks

PART = 1 << 15  # audio samples whose spectrum is taken at once


@dataclass(frozen=True)
class Recording:
    """Audio to restore, as it is stored.

    name: in messages; read: its blocks [n, channels], from the start at each call.
    """

    name: str
    sample_rate: int
    channels: int
    read: Callable[[], Iterator[np.ndarray]]


def recording_of_file(file: Path) -> Recording:
    """A file, which is not held in memory. Raises StageError."""
    sample_rate, channels = read_format(file)
    return Recording(str(file), sample_rate, channels, lambda: read_blocks(file))


def recording_of_array(audio_CN: np.ndarray, sample_rate: int) -> Recording:
    """Audio [C, N] in memory."""
    audio_NC = np.ascontiguousarray(audio_CN.T, dtype=np.float32)
    return Recording("the audio", sample_rate, audio_NC.shape[1], lambda: iter([audio_NC]))


@dataclass(frozen=True)
class LowAudio:
    """A recording at `sample_rate` Hz.

    length: audio samples; audible_C: channels that are not silent; power: mean square of these,
    all together; correlation_CC: of these, in the octave below the cutoff.
    """

    recording: Recording
    sample_rate: int
    length: int
    audible_C: np.ndarray
    power: float
    correlation_CC: np.ndarray

    def blocks(self) -> Iterator[np.ndarray]:
        """The audio, [n, channels], silent channels included."""
        return resampled_blocks(self.recording, self.sample_rate)


def resampled_blocks(recording: Recording, sample_rate: int) -> Iterator[np.ndarray]:
    """A recording at `sample_rate` Hz, in blocks [n, channels], of the nearest length.

    Resampling alone rounds the length up. Raises StageError.
    """
    stored_rate = recording.sample_rate
    stored = made = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal stored
        for block_NC in recording.read():
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


def measure(recording: Recording, sample_rate: int, cutoff: float) -> LowAudio:
    """Read a recording once for what restoring it needs to know. Raises StageError."""
    channels = recording.channels
    length = 0
    squares_C = np.zeros(channels)
    covariance_CC = np.zeros((channels, channels))
    for part_NC in overlapping(resampled_blocks(recording, sample_rate), PART, PART):
        length += len(part_NC)
        squares_C += np.sum(np.square(part_NC, dtype=np.float64), axis=0)
        covariance_CC += _octave_covariance(part_NC, sample_rate, cutoff)
    audible_C = squares_C > 0
    power = float(squares_C[audible_C].mean() / length) if audible_C.any() else 0.0
    deviation_C = np.sqrt(np.maximum(np.diag(covariance_CC), 1e-30))
    correlation_CC = covariance_CC / np.outer(deviation_C, deviation_C)
    np.fill_diagonal(correlation_CC, 1.0)
    return LowAudio(
        recording,
        sample_rate,
        length,
        audible_C,
        power,
        correlation_CC[np.ix_(audible_C, audible_C)],
    )


def _octave_covariance(audio_NC: np.ndarray, sample_rate: int, cutoff: float) -> np.ndarray:
    """Products of the channels [C, C], summed over the octave below the cutoff."""
    window_N1 = np.hanning(len(audio_NC) + 2)[1:-1, None]
    spectrum_FC = np.fft.rfft(audio_NC * window_N1, axis=0)
    hertz_F = np.fft.rfftfreq(len(audio_NC), 1 / sample_rate)
    octave_FC = spectrum_FC[(hertz_F >= cutoff / 2) & (hertz_F < cutoff)]
    return np.real(octave_FC.conj().T @ octave_FC)
