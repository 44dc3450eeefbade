"""Input normalisation of published SSL networks, in torch and differentiable.

`transformers` computes the same in numpy, without gradients; a test compares the two. Definitions:
wav2vec 2.0 (arXiv 2006.11477), AST (arXiv 2104.01778, Kaldi filter banks), CLAP (arXiv 2211.06687),
Whisper (arXiv 2212.04356).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_KALDI_FLOOR = torch.finfo(torch.float32).eps  # Kaldi's epsilon before the logarithm
_POWER_FLOOR = 1e-10


def standardise(audio_BN: Tensor) -> Tensor:
    """Audio [B, N] -> each clip with mean 0 and variance 1; silence stays 0."""
    centred_BN = audio_BN - audio_BN.mean(1, keepdim=True)
    # The offset keeps the gradient of digital silence finite.
    return centred_BN / (centred_BN.square().mean(1, keepdim=True) + 1e-7).sqrt()


def _power(spectrum: Tensor) -> Tensor:
    """|X|^2 of a complex tensor; `abs` has no gradient at 0, which digital silence reaches."""
    return torch.view_as_real(spectrum).square().sum(-1)


class KaldiMel(nn.Module):
    """Kaldi's log filter banks as AST uses them: 25 ms Hann windows every 10 ms, unpadded.

    The mean of each window is removed, then pre-emphasis of 0.97 applied; 20 Hz to Nyquist.
    """

    filters_FC: Tensor
    window: Tensor

    def __init__(self, *, sample_rate: int, n_mels: int) -> None:
        super().__init__()
        from torchaudio.compliance.kaldi import get_mel_banks

        self.length = int(sample_rate * 0.025)
        self.hop = int(sample_rate * 0.010)
        self.n_fft = 1 << (self.length - 1).bit_length()
        filters_CF, _ = get_mel_banks(
            n_mels, self.n_fft, float(sample_rate), 20.0, 0.0, 100.0, -500.0, 1.0
        )
        # The filter bank has no row for the Nyquist bin.
        self.register_buffer(
            "filters_FC", F.pad(filters_CF, (0, 1)).T.contiguous(), persistent=False
        )
        self.register_buffer(
            "window", torch.hann_window(self.length, periodic=False), persistent=False
        )

    def forward(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N] -> [B, T, C], T = (N - length) // hop + 1."""
        pieces_BTN = audio_BN.unfold(1, self.length, self.hop)
        pieces_BTN = pieces_BTN - pieces_BTN.mean(-1, keepdim=True)
        # The first sample of a window has no predecessor and stands in for it.
        before_BTN = torch.cat([pieces_BTN[..., :1], pieces_BTN[..., :-1]], dim=-1)
        spectrum_BTF = torch.fft.rfft((pieces_BTN - 0.97 * before_BTN) * self.window, n=self.n_fft)
        return (_power(spectrum_BTF) @ self.filters_FC).clamp_min(_KALDI_FLOOR).log()


class LogMel(nn.Module):
    """log10 of mel power, windows centred on multiples of hop, ends reflected (CLAP, Whisper).

    filters_FC: [n_fft // 2 + 1, C]; power is clamped at 1e-10.
    """

    filters_FC: Tensor
    window: Tensor

    def __init__(self, filters_FC: Tensor, *, n_fft: int, hop: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.hop = hop
        self.register_buffer("filters_FC", filters_FC.float(), persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N] -> [B, T, C], T = N // hop + 1."""
        spectrum_BFT = torch.stft(
            audio_BN, self.n_fft, self.hop, window=self.window, return_complex=True
        )
        return (
            (_power(spectrum_BFT).transpose(1, 2) @ self.filters_FC).clamp_min(_POWER_FLOOR).log10()
        )


def fill(audio_BN: Tensor, length: int, padding: str) -> Tensor:
    """Audio [B, N] -> [B, length], N <= length.

    padding, as named by CLAP's feature extractor: "repeatpad", whole repeats and then zeros;
    "repeat", repeats, the last one cut; "pad", zeros.
    """
    present = audio_BN.shape[1]
    if padding == "repeat":
        return audio_BN.repeat(1, -(-length // present))[:, :length]
    if padding == "repeatpad":
        audio_BN = audio_BN.repeat(1, length // present)
    return F.pad(audio_BN, (0, length - audio_BN.shape[1]))


def whisper_range(log_BTC: Tensor) -> Tensor:
    """log10 mel power [B, T, C] -> clamped 80 dB below each clip's maximum, about [-1, 1]."""
    return (torch.maximum(log_BTC, log_BTC.amax((1, 2), keepdim=True) - 8) + 4) / 4
