"""Why an audio file is unusable: damage, truncation, silence, a low sample rate. No torch."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from stagecli.data.decoding import AudioInfo, open_audio
from stagecli.data.undecodable import UndecodableError
from stagecli.errors import significant

# Peak of the mono mix; below the smallest 16-bit value (3e-5), above the rounding of antiphase.
SILENCE = 2e-5
_SILENT = "is silent"
# Peak of the mono mix of float audio above which its scale is that of integers: a loud float file
# may pass full scale (1.0), but not by 12 dB.
LARGEST_PEAK = 4.0


def check_content(audio: Path | bytes) -> tuple[AudioInfo | None, str | None]:
    """Format of a file or of its bytes, and why it is unusable at any sample rate (or None).

    Decodes everything. The result depends on the content alone, so it can be remembered. Raises
    OSError where the file system fails.
    """
    num_samples = 0
    peak = 0.0
    energy = 0.0
    is_finite = True
    try:
        with open_audio(audio) as stream:
            for block_NC in stream.blocks():
                num_samples += len(block_NC)
                is_finite = is_finite and bool(np.isfinite(block_NC).all())
                if is_finite:
                    mono_N = block_NC.mean(axis=1)
                    peak = max(peak, float(np.abs(mono_N).max()))
                    energy += float(np.dot(mono_N, mono_N))
            rms = math.sqrt(energy / max(num_samples, 1))
            info = AudioInfo(stream.sample_rate, num_samples, stream.channels, peak, rms)
    except UndecodableError as error:
        return None, str(error)
    if num_samples == 0:
        return info, "holds no samples"
    if not is_finite:
        return info, "holds NaN or infinite samples"
    if peak < SILENCE:
        return info, f"{_SILENT} (peak of the mono mix {peak:.1g})"
    return info, None


def is_silent(problem: str) -> bool:
    """Whether a problem of `check_content` is only that the audio is silent."""
    return problem.startswith(_SILENT)


def too_low(info: AudioInfo | None, sample_rate: int) -> str | None:
    """The problem if the file's rate is below the recipe's: upsampled audio has an empty band."""
    if info is None or info.sample_rate >= sample_rate:
        return None
    return f"sample rate {info.sample_rate} Hz is below the recipe's {sample_rate} Hz"


def wrong_scale(info: AudioInfo | None) -> str | None:
    """The problem if samples are far above full scale, as in a float file of 16-bit integers."""
    if info is None or info.peak <= LARGEST_PEAK:
        return None
    peak = significant(info.peak, 6)
    return f"peaks at {peak} times full scale: its samples must lie between -1 and 1"
