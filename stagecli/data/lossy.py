"""Audio through MP3 or Vorbis and back, in memory: inputs that have been compressed. No torch."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

LossyCodec = Literal["mp3", "vorbis"]
FORMATS: dict[LossyCodec, tuple[str, str]] = {
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "vorbis": ("OGG", "VORBIS"),
}
COMPRESSION = (0.0, 0.8)  # of libsndfile's scale from the best quality, 0, to the smallest file, 1
PEAK = 0.9  # full scale is left some room, because encoders overshoot


@dataclass(frozen=True)
class Lossy:
    """compression: on libsndfile's scale from 0, the best quality, to 1."""

    codec: LossyCodec
    compression: float


def draw_lossy(rng: np.random.Generator) -> Lossy:
    """Either codec, at a random compression. Always two draws from `rng`."""
    codec: LossyCodec = "mp3" if rng.random() < 0.5 else "vorbis"
    return Lossy(codec, COMPRESSION[0] + float(rng.random()) * (COMPRESSION[1] - COMPRESSION[0]))


def compress_and_decode(audio_N: np.ndarray, sample_rate: int, lossy: Lossy) -> np.ndarray:
    """Audio [N] -> float32 [N] at the same level, without delay. Silence stays silent.

    sample_rate: one that MPEG audio has. Raises soundfile's error for another, and without the
    codec.
    """
    import soundfile

    peak = float(np.abs(audio_N).max(initial=0.0))
    if peak == 0:
        return audio_N.astype(np.float32)
    name, subtype = FORMATS[lossy.codec]
    file = io.BytesIO()
    soundfile.write(
        file,
        (audio_N * (PEAK / peak)).astype(np.float32),
        sample_rate,
        format=name,
        subtype=subtype,
        compression_level=lossy.compression,
    )
    file.seek(0)
    decoded_N, _ = soundfile.read(file, dtype="float32")
    decoded_N = decoded_N[: audio_N.size]
    return np.pad(decoded_N, (0, audio_N.size - decoded_N.size)) * np.float32(peak / PEAK)


@cache
def missing_codecs() -> list[str]:
    """The codecs that this installation of libsndfile cannot write."""
    import soundfile

    return [codec for codec, names in FORMATS.items() if not soundfile.check_format(*names)]
