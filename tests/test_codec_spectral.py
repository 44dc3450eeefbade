"""Spectral codecs: lossless round trip, channel frequencies, finite gradients, kept bands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stagecli.codec.spectral import MDCTCodec, SpectralCodec, STFTCodec, compress, expand
from stagecli.files import read_json_lines

RATE = 44100
CODECS = {
    "mdct-sine": lambda: MDCTCodec(sample_rate=RATE, hop=512, alpha=0.3),
    "mdct-kbd": lambda: MDCTCodec(sample_rate=RATE, hop=256, window="kbd", alpha=0.2),
    "mdct-vorbis": lambda: MDCTCodec(sample_rate=RATE, hop=128, window="vorbis", alpha=1.0),
    "stft-half": lambda: STFTCodec(sample_rate=RATE, n_fft=1024, hop=512, alpha=0.3),
    "stft-quarter": lambda: STFTCodec(
        sample_rate=RATE, n_fft=512, hop=128, window="kbd", alpha=0.5
    ),
}


@pytest.fixture(params=sorted(CODECS))
def codec(request: pytest.FixtureRequest) -> SpectralCodec:
    return CODECS[request.param]()


def snr_db(reference_BN: Tensor, estimate_BN: Tensor) -> float:
    """Lowest signal-to-noise ratio of the batch, dB."""
    error_B = (reference_BN - estimate_BN).double().square().sum(1).clamp_min(1e-30)
    return (10 * torch.log10(reference_BN.double().square().sum(1) / error_B)).min().item()


def lowpass(audio_BN: Tensor, cutoff_hz: float) -> Tensor:
    """Brick-wall low-pass by FFT of the whole signal."""
    spectrum_BF = torch.fft.rfft(audio_BN.double())
    hz_F = torch.fft.rfftfreq(audio_BN.shape[1], 1 / RATE)
    return torch.fft.irfft(spectrum_BF * (hz_F < cutoff_hz), n=audio_BN.shape[1]).float()


def synthetic(samples: int = 22050) -> Tensor:
    """Two signals [2, samples]: a decaying chord, and noise with a silent middle."""
    generator = torch.Generator().manual_seed(0)
    seconds = torch.arange(samples) / RATE
    tones = sum(torch.sin(2 * torch.pi * hz * seconds) for hz in (220.0, 1234.5, 9000.0))
    chord = tones * torch.exp(-4 * seconds)
    noise = 0.3 * torch.randn(samples, generator=generator)
    noise[samples // 3 : samples // 2] = 0
    return torch.stack([0.2 * chord, noise])


def real_clip(split: str = "train") -> Tensor:
    """One ESC-10 clip [1, N] at 44.1 kHz."""
    root = os.environ.get("STAGECLI_DATA")
    if not root:
        pytest.skip("STAGECLI_DATA is not set: no real audio to test on")
    folder = Path(root) / "esc10"
    rows = (row for _, row in read_json_lines(folder / "manifest.jsonl"))
    row = next(row for row in rows if row["split"] == split)
    audio_N, rate = soundfile.read(folder / row["path"], dtype="float32")
    assert rate == RATE
    return torch.from_numpy(audio_N)[None]


def mixed(codec: SpectralCodec, other_BTC: Tensor, kept_BTC: Tensor, cutoff_hz: float) -> Tensor:
    """Frames with the channels below the cutoff from `kept_BTC`, the others from `other_BTC`."""
    return torch.where(codec.channel_hz < cutoff_hz, kept_BTC, other_BTC)


def fitted(codec: SpectralCodec, audio_BN: Tensor) -> SpectralCodec:
    codec.fit([audio_BN])
    return codec


def test_round_trip_of_synthetic_audio(codec: SpectralCodec) -> None:
    audio_BN = synthetic()
    fitted(codec, audio_BN)
    frames_BTC = codec.encode(audio_BN)
    assert frames_BTC.shape == (2, codec.frames(audio_BN.shape[1]), codec.channels)
    assert codec.decode(frames_BTC).shape == (2, frames_BTC.shape[1] * codec.hop)
    assert snr_db(audio_BN, codec.decode(frames_BTC, audio_BN.shape[1])) >= 60


def test_round_trip_of_a_real_clip(codec: SpectralCodec) -> None:
    audio_BN = real_clip()
    fitted(codec, audio_BN)
    assert snr_db(audio_BN, codec.decode(codec.encode(audio_BN), audio_BN.shape[1])) >= 60


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(1, 3000), name=st.sampled_from(["mdct-kbd", "stft-half", "stft-quarter"])
)
def test_any_length_comes_back(samples: int, name: str) -> None:
    codec = CODECS[name]()
    audio_BN = torch.randn(1, samples, generator=torch.Generator().manual_seed(samples))
    frames_BTC = codec.encode(audio_BN)
    assert frames_BTC.shape[1] == codec.frames(samples) == -(-samples // codec.hop)
    assert snr_db(audio_BN, codec.decode(frames_BTC, samples)) >= 60


def test_encoded_frames_are_standardised(codec: SpectralCodec) -> None:
    audio_BN = synthetic()
    frames_FC = fitted(codec, audio_BN).encode(audio_BN).flatten(0, 1)
    assert frames_FC.mean(0).abs().max() < 1e-3
    assert torch.allclose(frames_FC.std(0, unbiased=False), torch.ones(codec.channels), atol=1e-2)


def test_gradients_are_finite_at_silence_and_elsewhere(codec: SpectralCodec) -> None:
    audio_BN = synthetic(4000)
    audio_BN[0] = 0
    audio_BN.requires_grad_()
    frames_BTC = codec.encode(audio_BN)
    (gradient_BN,) = torch.autograd.grad(frames_BTC.square().sum(), audio_BN)
    assert gradient_BN.isfinite().all() and gradient_BN[1].abs().max() > 0
    frames_BTC = frames_BTC.detach().requires_grad_()
    (gradient_BTC,) = torch.autograd.grad(codec.decode(frames_BTC).sum(), frames_BTC)
    assert gradient_BTC.isfinite().all() and gradient_BTC[1].abs().max() > 0


def test_companding_is_inverted_over_the_whole_range() -> None:
    amplitude = torch.logspace(-9, 1, 200)
    for alpha in (0.2, 0.5, 1.0):
        back = expand(compress(amplitude, alpha, 1e-5), alpha, 1e-5)
        assert torch.allclose(back, amplitude, rtol=1e-4)
    assert compress(torch.zeros(1), 0.3, 1e-5).item() == 0


def test_channel_hz_names_the_channel_a_tone_lands_in(codec: SpectralCodec) -> None:
    tone_hz = 5000.0
    audio_BN = 0.5 * torch.sin(2 * torch.pi * tone_hz * torch.arange(8192) / RATE)[None]
    power_C = codec.analyse(audio_BN)[0].square().mean(0)
    assert codec.channel_hz.shape == (codec.channels,)
    width_hz = RATE / codec.channels
    assert abs(codec.channel_hz[power_C.argmax()].item() - tone_hz) <= width_hz


def test_replaced_mdct_band_survives_decoding_exactly() -> None:
    codec = fitted(MDCTCodec(sample_rate=RATE, hop=512, window="kbd"), synthetic())
    kept_BTC = codec.encode(synthetic())
    mixed_BTC = mixed(codec, torch.randn_like(kept_BTC), kept_BTC, 4000.0)
    again_BTC = codec.encode(codec.decode(mixed_BTC))
    below_C = codec.channel_hz < 4000.0
    # An orthogonal transform: decoding and encoding again keeps every channel.
    assert snr_db(kept_BTC[..., below_C].flatten(1), again_BTC[..., below_C].flatten(1)) >= 60


def test_audio_below_the_cutoff_is_the_kept_one(codec: SpectralCodec) -> None:
    kept_BN = synthetic(16384)
    cutoff = 6000.0
    guard = 1.5 * 44100 / 128
    fitted(codec, kept_BN)
    kept_BTC = codec.encode(kept_BN)
    other_BTC = codec.encode(kept_BN.flip(0))  # same level, other sound
    audio_BN = codec.decode(mixed(codec, other_BTC, kept_BTC, cutoff), kept_BN.shape[1])
    inner = slice(2048, -2048)  # cut ends have no band limit
    expected_BN, got_BN = (lowpass(x, cutoff - guard)[:, inner] for x in (kept_BN, audio_BN))
    assert snr_db(expected_BN, got_BN) >= 30
    assert snr_db(lowpass(kept_BN, RATE)[:, inner], audio_BN[:, inner]) < 20  # the rest did change


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MDCTCodec(sample_rate=RATE, hop=511), "even"),
        (lambda: MDCTCodec(sample_rate=RATE, window="hann"), "sine, kbd, vorbis"),
        (lambda: MDCTCodec(sample_rate=RATE, alpha=0.0), "alpha"),
        (lambda: MDCTCodec(sample_rate=RATE, floor=0.0), "floor"),
        (lambda: STFTCodec(sample_rate=RATE, n_fft=512, hop=512), "n_fft >= 2 hop"),
    ],
)
def test_bad_options_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
