"""Lossless spectral codecs: the MDCT and the complex STFT, both with companded amplitudes.

Both have T = ceil(N / hop) frames, assign every channel a frequency in Hz and need no training
beyond `fit`. The MDCT is critically sampled (C = hop). The STFT is redundant (C = n_fft) and keeps
the phase as the direction of (real, imaginary).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stagecli.codec.base import Codec
from stagecli.dsp.channels import mdct_hz, stft_hz

_SMALLEST = 1e-30  # keeps sqrt and division differentiable at zero; far below any audible amplitude


def compress(amplitude: Tensor, alpha: float, floor: float) -> Tensor:
    """Amplitude >= 0 of any shape -> (amplitude + floor)^alpha - floor^alpha.

    A power law with a finite slope at zero, alpha floor^(alpha - 1), and a closed-form inverse
    (`expand`). Computed with expm1 and log1p, because the plain form cancels below `floor`.
    """
    return floor**alpha * torch.expm1(alpha * torch.log1p(amplitude / floor))


def expand(companded: Tensor, alpha: float, floor: float) -> Tensor:
    """Inverse of `compress`; companded >= 0 of any shape -> amplitude."""
    return floor * torch.expm1(torch.log1p(companded / floor**alpha) / alpha)


def _rising_half(kind: str, length: int) -> Tensor:
    """Rising half [length] (float64) of a window w with w(n)^2 + w(length - 1 - n)^2 = 1.

    kind: "sine"; "kbd" (Kaiser-Bessel-derived with alpha 4, Princen and Bradley, ISO 13818-7);
    "vorbis" (Vorbis I specification, 4.3.1). kbd has the lowest far side lobes, sine the lowest
    near ones.
    """
    n = torch.arange(length, dtype=torch.float64) + 0.5
    sine = torch.sin(math.pi / 2 * n / length)
    if kind == "sine":
        return sine
    if kind == "vorbis":
        return torch.sin(math.pi / 2 * sine.square())
    if kind == "kbd":
        kaiser = torch.kaiser_window(
            length + 1, periodic=False, beta=4 * math.pi, dtype=torch.float64
        )
        return (kaiser.cumsum(0)[:-1] / kaiser.sum()).sqrt()
    raise ValueError(f"unknown window {kind!r}; one of sine, kbd, vorbis")


def _to_blocks(audio_BN: Tensor, frames: int, hop: int) -> Tensor:
    """Audio [B, N] -> blocks [B, T, hop], the last one zero-padded."""
    padded_BN = torch.nn.functional.pad(audio_BN, (0, frames * hop - audio_BN.shape[1]))
    return padded_BN.reshape(audio_BN.shape[0], frames, hop)


class SpectralCodec(Codec):
    """Base of the spectral codecs: companding, and a frequency for every channel.

    alpha: exponent of the companding, in (0, 1]; floor: amplitude below which it is linear.
    channel_hz: centre frequency of each channel, Hz [C]. Raises ValueError for options out of
    range.
    """

    channel_hz: Tensor

    def __init__(
        self,
        *,
        sample_rate: int,
        hop: int,
        channels: int,
        channel_hz_C: Tensor,
        alpha: float,
        floor: float,
    ) -> None:
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must be in (0, 1], not {alpha}")
        if floor <= 0:
            raise ValueError(f"floor must be positive, not {floor}")
        super().__init__(sample_rate=sample_rate, hop=hop, channels=channels, is_network=False)
        self.alpha = alpha
        self.floor = floor
        self.register_buffer("channel_hz", channel_hz_C.float(), persistent=False)


class MDCTCodec(SpectralCodec):
    """Modified discrete cosine transform (Princen and Bradley, 1986), companded.

    hop: samples per frame and number of coefficients, even; the window spans 2 hop samples. A raw
    frame is sign(c) compress(|c|). Computed as a lapped orthogonal transform: a rotation of
    mirrored samples across every inner block boundary (the time-domain aliasing), then an
    orthonormal DCT-IV of each block. The outer boundaries are not rotated, so T = ceil(N / hop) and
    nothing is lost at the ends.
    """

    dct_NC: Tensor
    cosine_H: Tensor
    sine_H: Tensor

    def __init__(
        self,
        *,
        sample_rate: int,
        hop: int = 512,
        window: str = "sine",
        alpha: float = 0.3,
        floor: float = 1e-5,
    ) -> None:
        if hop < 2 or hop % 2:
            raise ValueError(f"the MDCT hop must be even and at least 2, not {hop}")
        index = torch.arange(hop, dtype=torch.float64) + 0.5
        super().__init__(
            sample_rate=sample_rate,
            hop=hop,
            channels=hop,
            channel_hz_C=mdct_hz(hop, sample_rate),
            alpha=alpha,
            floor=floor,
        )
        rise = _rising_half(window, hop)
        dct_NC = math.sqrt(2 / hop) * torch.cos(math.pi / hop * index[:, None] * index[None, :])
        self.register_buffer("dct_NC", dct_NC.float(), persistent=False)
        self.register_buffer("cosine_H", rise[hop // 2 :].float(), persistent=False)
        self.register_buffer("sine_H", rise[: hop // 2].flip(0).float(), persistent=False)

    def _rotate(self, block_BTN: Tensor, direction: int) -> Tensor:
        """Rotate mirrored pairs across inner block boundaries; direction -1 undoes direction 1."""
        half = self.hop // 2
        before_BTH = block_BTN[:, :-1, half:].flip(-1)  # counted from the boundary outwards
        after_BTH = block_BTN[:, 1:, :half]
        sine_H = direction * self.sine_H
        new_before_BTH = (self.cosine_H * before_BTH - sine_H * after_BTH).flip(-1)
        new_after_BTH = self.cosine_H * after_BTH + sine_H * before_BTH
        left_BTH = torch.cat([block_BTN[:, :1, :half], new_after_BTH], dim=1)
        right_BTH = torch.cat([new_before_BTH, block_BTN[:, -1:, half:]], dim=1)
        return torch.cat([left_BTH, right_BTH], dim=-1)

    def analyse(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N] -> companded MDCT coefficients [B, T, hop]."""
        block_BTN = _to_blocks(audio_BN, self.frames(audio_BN.shape[1]), self.hop)
        coefficient_BTC = self._rotate(block_BTN, 1) @ self.dct_NC
        return coefficient_BTC.sign() * compress(coefficient_BTC.abs(), self.alpha, self.floor)

    def synthesise(self, raw_BTC: Tensor, draft: bool = False) -> Tensor:
        """Companded MDCT coefficients [B, T, hop] -> audio [B, T * hop]."""
        coefficient_BTC = raw_BTC.sign() * expand(raw_BTC.abs(), self.alpha, self.floor)
        # The DCT-IV matrix is symmetric and orthogonal: it is its own inverse.
        return self._rotate(coefficient_BTC @ self.dct_NC, -1).flatten(1)


class STFTCodec(SpectralCodec):
    """Complex short-time Fourier transform with companded magnitude and unchanged phase.

    n_fft: window length in samples, even and at least 2 hop. Frame k is centred on the middle of
    samples [k hop, (k + 1) hop). Channels: real parts of bins 0 .. n_fft / 2, then imaginary parts
    of bins 1 .. n_fft / 2 - 1 (the other two are zero), so C = n_fft. Scaled so that white noise of
    variance 1 has bins of mean power 1. Synthesis is least squares (Griffin and Lim, 1984).
    """

    window_N: Tensor

    def __init__(
        self,
        *,
        sample_rate: int,
        n_fft: int = 1024,
        hop: int = 512,
        window: str = "sine",
        alpha: float = 0.3,
        floor: float = 1e-5,
    ) -> None:
        if hop < 1 or n_fft % 2 or n_fft < 2 * hop or (n_fft - hop) % 2:
            raise ValueError(
                f"the STFT needs an even n_fft >= 2 hop and an even hop, not {n_fft} and {hop}"
            )
        super().__init__(
            sample_rate=sample_rate,
            hop=hop,
            channels=n_fft,
            channel_hz_C=stft_hz(n_fft, sample_rate),
            alpha=alpha,
            floor=floor,
        )
        self.n_fft = n_fft
        rise = _rising_half(window, n_fft // 2)
        window_N = torch.cat([rise, rise.flip(0)])
        window_N = window_N / window_N.square().sum().sqrt()
        self.register_buffer("window_N", window_N.float(), persistent=False)

    def _overlap_add(self, frame_BTN: Tensor) -> Tensor:
        """Frames [B, T, n_fft] -> overlap-added [B, T * hop], without the overhang."""
        frames = frame_BTN.shape[1]
        overhang = (self.n_fft - self.hop) // 2
        total = (frames - 1) * self.hop + self.n_fft
        sum_B11N = torch.nn.functional.fold(
            frame_BTN.transpose(1, 2), (1, total), (1, self.n_fft), stride=(1, self.hop)
        )
        return sum_B11N[:, 0, 0, overhang : overhang + frames * self.hop]

    def analyse(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N] -> companded real and imaginary parts [B, T, n_fft]."""
        overhang = (self.n_fft - self.hop) // 2
        frames = self.frames(audio_BN.shape[1])
        right = frames * self.hop - audio_BN.shape[1] + overhang
        padded_BN = torch.nn.functional.pad(audio_BN, (overhang, right))
        frame_BTN = padded_BN.unfold(1, self.n_fft, self.hop) * self.window_N
        spectrum_BTF = torch.fft.rfft(frame_BTN)
        real_BTF = spectrum_BTF.real
        imag_BTF = spectrum_BTF.imag
        radius_BTF = (real_BTF.square() + imag_BTF.square() + _SMALLEST).sqrt()
        gain_BTF = compress(radius_BTF, self.alpha, self.floor) / radius_BTF
        return torch.cat([real_BTF * gain_BTF, (imag_BTF * gain_BTF)[..., 1:-1]], dim=-1)

    def synthesise(self, raw_BTC: Tensor, draft: bool = False) -> Tensor:
        """Companded real and imaginary parts [B, T, n_fft] -> audio [B, T * hop]."""
        bins = self.n_fft // 2 + 1
        real_BTF = raw_BTC[..., :bins]
        imag_BTF = torch.nn.functional.pad(raw_BTC[..., bins:], (1, 1))
        radius_BTF = (real_BTF.square() + imag_BTF.square() + _SMALLEST).sqrt()
        gain_BTF = expand(radius_BTF, self.alpha, self.floor) / radius_BTF
        frame_BTN = torch.fft.irfft(
            torch.complex(real_BTF * gain_BTF, imag_BTF * gain_BTF), n=self.n_fft
        )
        weight_1TN = self.window_N.square().expand(1, raw_BTC.shape[1], -1)
        return self._overlap_add(frame_BTN * self.window_N) / self._overlap_add(weight_1TN)
