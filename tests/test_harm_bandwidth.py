"""The bandwidth of a recording is found, whatever word length it is stored in."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stagecli.data.bandwidth import bandwidth, file_bandwidth

SUBTYPES = ("PCM_16", "PCM_24", "FLOAT")


def resampled_ideally(audio: np.ndarray, factor: int) -> np.ndarray:
    """Audio at `factor` times the rate, with an empty band above the old Nyquist frequency."""
    size = len(audio) * factor
    spectrum = np.zeros(size // 2 + 1, dtype=complex)
    old = np.fft.rfft(audio)
    spectrum[: len(old)] = old
    return np.fft.irfft(spectrum, size) * factor


def stored(audio: np.ndarray, rate: int, subtype: str) -> np.ndarray:
    """The audio as it is read back from a WAV file; `dither`: 16 bits with triangular dither."""
    audio = audio / max(1.0, float(np.abs(audio).max()))
    if subtype == "dither":
        rng = np.random.default_rng(0)
        steps = np.rint(audio * 32768 + rng.random(len(audio)) - rng.random(len(audio)))
        return (np.clip(steps, -32768, 32767) / 32768).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, audio, rate, subtype=subtype, format="WAV")
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


@pytest.mark.parametrize("gain", [1.0, 0.1])
@pytest.mark.parametrize("factor", [2, 6])
@pytest.mark.parametrize("subtype", [*SUBTYPES, "dither"])
def test_8_khz_speech_at_a_higher_rate_ends_at_4_khz(
    subtype: str, factor: int, gain: float, data_dir: Path
) -> None:
    files = sorted((data_dir / "fsdd" / "audio").glob("*.flac"))[::61][:50]
    assert len(files) >= 40
    ends = []
    for file in files:
        speech, rate = soundfile.read(file)
        audio = stored(gain * resampled_ideally(speech, factor), rate * factor, subtype)
        ends.append(bandwidth(audio, rate * factor))
    assert min(ends) > 3600 and max(ends) < 4100


@pytest.mark.parametrize("gain_db", [-1, -20, -40])
@pytest.mark.parametrize("kind", ["white", "pink", "harmonics of 110 Hz", "harmonics of 440 Hz"])
@pytest.mark.parametrize("rate", [16000, 48000])
def test_full_band_audio_stays_full_band(rate: int, kind: str, gain_db: float) -> None:
    noise = np.random.default_rng(1).standard_normal(rate)
    if kind == "pink":
        noise = np.fft.irfft(np.fft.rfft(noise) / np.sqrt(np.arange(rate // 2 + 1) + 1), rate)
    if kind.startswith("harmonics"):
        pitch = float(kind.split()[2])
        seconds = np.arange(rate) / rate
        numbers = range(1, int(rate / 2 / pitch) + 1)
        noise = sum(np.sin(2 * np.pi * pitch * k * seconds + k) / k for k in numbers)
    audio = noise / np.abs(noise).max() * 10 ** (gain_db / 20)
    for subtype in SUBTYPES:
        assert bandwidth(stored(audio, rate, subtype), rate) > 0.98 * rate / 2


def test_a_quiet_16_bit_file_never_seems_wider_than_it_is(data_dir: Path) -> None:
    """At -40 dB much of the speech lies below the rounding noise, which must not count for it."""
    for file in sorted((data_dir / "fsdd" / "audio").glob("*.flac"))[::61][:50]:
        speech, rate = soundfile.read(file)
        for factor in (2, 6):
            audio = stored(0.01 * resampled_ideally(speech, factor), rate * factor, "PCM_16")
            assert bandwidth(audio, rate * factor) < 4100


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_channels_of_16_bits_do_not_seem_wider_than_one_of_them(
    channels: int, data_dir: Path, tmp_path: Path
) -> None:
    """Their mean has a longer word, whose noise would be looked for 48 dB too low."""
    file = sorted((data_dir / "fsdd" / "audio").glob("*.flac"))[0]
    speech, rate = soundfile.read(file)
    audio = resampled_ideally(speech, 2)
    rng = np.random.default_rng(0)
    columns = [np.roll(audio, rng.integers(100)) * 0.9**k for k in range(channels)]
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack(columns, axis=1), 2 * rate, subtype="PCM_16")
    assert 3600 < file_bandwidth(path) < 4100


def test_a_silent_channel_does_not_count(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(4000) * 0.1
    narrow = resampled_ideally(noise, 2)
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([narrow, 0 * narrow], axis=1), 16000, subtype="FLOAT")
    assert 3600 < file_bandwidth(path) < 4300
