"""An audio file as a page holds it: MP3, which every browser plays, and a picture of its spectrum.

No torch.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from stagecli.data.decoding import UndecodableError, file_problem, open_audio

__all__ = ["Sound", "SoundError", "load_sound"]

LONGEST = 30.0  # seconds of a file that are heard; the rest is left out
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz
PICTURE = (320, 128)  # pixels; a page shows it smaller, so that it is sharp on dense screens too
PICTURE_QUALITY = 75  # of JPEG
WINDOW = 0.04  # seconds of a spectrum, at least
RANGE_DB = 80.0  # from the loudest to what is black
SILENCE_DB = -60.0  # the level below which a sound is called silent, and its picture stays dark
COLOURS = "magma"
REMEMBERED = 1000  # sounds; as many as a page can have


class SoundError(Exception):
    """A file that cannot be put on a page; the message is the problem."""


@dataclass(frozen=True)
class Sound:
    """mp3, picture: `data:` URIs. seconds: of the file; heard: of them on the page. sample_rate:
    Hz, of the file. loudest_db: the level that is brightest in the picture; silent: all of it is
    far below full scale.
    """

    mp3: str
    picture: str
    seconds: float
    heard: float
    sample_rate: int
    loudest_db: float
    silent: bool

    @property
    def size(self) -> int:
        """Characters that it takes in a page."""
        return len(self.mp3) + len(self.picture)


def load_sound(path: Path, loudest_db: float | None = None) -> Sound:
    """Read and encode a file.

    loudest_db: the scale of the picture, taken from the sound that it is compared with; None: its
    own. Raises SoundError. Files that have not changed are not encoded again: `--follow` writes the
    page whenever there is something new.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise SoundError(file_problem(error)) from error
    return _encoded(path.absolute(), (status.st_mtime_ns, status.st_size), loudest_db)


@lru_cache(maxsize=REMEMBERED)
def _encoded(path: Path, stamp: tuple[int, int], loudest_db: float | None) -> Sound:
    """stamp: of the file, so that a changed one is read again."""
    audio_NC, rate, length = _read(path)
    heard_NC = audio_NC[: round(LONGEST * rate)]
    if not np.isfinite(heard_NC).all():
        raise SoundError("has samples that are not numbers")
    levels = _levels(heard_NC.mean(axis=1), rate)
    peak_db = float(levels.max())
    if loudest_db is None:
        loudest_db = max(SILENCE_DB, peak_db)
    return Sound(
        mp3=_data_uri("audio/mpeg", _mp3(heard_NC, rate)),
        picture=_data_uri("image/jpeg", _picture(levels, loudest_db)),
        seconds=length / rate,
        heard=len(heard_NC) / rate,
        sample_rate=rate,
        loudest_db=loudest_db,
        silent=peak_db < SILENCE_DB,
    )


def _read(path: Path) -> tuple[np.ndarray, int, int]:
    """(what is heard of a file [N, 1 or 2], its rate in Hz, its length in samples)."""
    try:
        with open_audio(path) as stream:
            rate = stream.sample_rate
            kept = []
            length = 0
            for block_NC in stream.blocks():
                if length < LONGEST * rate:
                    kept.append(block_NC)
                length += len(block_NC)
    except UndecodableError as error:
        raise SoundError(str(error)) from error
    except OSError as error:
        raise SoundError(file_problem(error)) from error
    if not length:
        raise SoundError("is empty")
    audio_NC = np.concatenate(kept)
    if audio_NC.shape[1] > 2:
        audio_NC = audio_NC.mean(axis=1, keepdims=True)
    return audio_NC, rate, length


def _mp3(audio_NC: np.ndarray, rate: int) -> bytes:
    import soundfile

    from stagecli.dsp.resample import resample

    # Up to the next rate that MP3 has, so that nothing is lost; down to the highest of them.
    to_rate = next((known for known in MP3_RATES if known >= rate), MP3_RATES[-1])
    if to_rate != rate:
        audio_NC = np.stack([resample(channel_N, rate, to_rate) for channel_N in audio_NC.T], 1)
    stream = io.BytesIO()
    try:
        soundfile.write(stream, np.clip(audio_NC, -1, 1), to_rate, format="MP3")
    except (ValueError, RuntimeError) as error:  # libsndfile before 1.1
        raise SoundError(f"cannot be written as MP3 by this soundfile: {error}") from error
    return stream.getvalue()


def _levels(audio_N: np.ndarray, rate: int) -> np.ndarray:
    """Levels in dB [frequency from low to high, time] in the size of the picture.

    0 dB is a sine of full scale. The loudest of the frequencies that share a row of pixels counts.
    """
    width, height = PICTURE
    size = max(2 * height, 2 ** math.ceil(math.log2(WINDOW * rate)))
    window = np.hanning(size).astype(np.float32)
    padded = np.pad(audio_N, (size // 2, size), mode="symmetric")  # no edges, which would show
    starts = np.arange(width) * len(audio_N) // width
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[starts]
    spectrum = np.abs(np.fft.rfft(frames * window)) * (2 / window.sum())
    edges = np.arange(height) * spectrum.shape[1] // height
    rows = np.maximum.reduceat(spectrum, edges, axis=1).T
    return np.asarray(20 * np.log10(np.maximum(rows, 1e-10)))


def _picture(levels: np.ndarray, loudest_db: float) -> bytes:
    from matplotlib.image import imsave

    stream = io.BytesIO()
    imsave(
        stream,
        levels,
        vmin=loudest_db - RANGE_DB,
        vmax=loudest_db,
        cmap=COLOURS,
        origin="lower",
        format="jpeg",
        pil_kwargs={"quality": PICTURE_QUALITY},
    )
    return stream.getvalue()


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
