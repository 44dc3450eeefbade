"""What an SSL network expects at its input, in torch and differentiable.

`transformers` computes the same in numpy, where no gradient passes; a test compares the two. Definitions:
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
    """Audio [B, N] -> each clip with mean 0 and variance 1; silence stays silence, with a finite gradient."""
    centred_BN = audio_BN - audio_BN.mean(1, keepdim=True)
    return centred_BN / (centred_BN.square().mean(1, keepdim=True) + 1e-7).sqrt()


def _power(spectrum: Tensor) -> Tensor:
    """|X|^2 of a complex tensor; `abs` has no gradient at 0, which digital silence reaches."""
    return torch.view_as_real(spectrum).square().sum(-1)


class KaldiMel(nn.Module):
    """Kaldi's log filter banks as AST has them: 25 ms Hann windows every 10 ms, no padding at the edges.

    The mean of each window is taken out, then pre-emphasis 0.97; 20 Hz to Nyquist.
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
        # The bank leaves the Nyquist bin out.
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
        # The first sample of a window stands for the one before it.
        before_BTN = torch.cat([pieces_BTN[..., :1], pieces_BTN[..., :-1]], dim=-1)
        spectrum_BTF = torch.fft.rfft((pieces_BTN - 0.97 * before_BTN) * self.window, n=self.n_fft)
        return (_power(spectrum_BTF) @ self.filters_FC).clamp_min(_KALDI_FLOOR).log()


class LogMel(nn.Module):
    """log10 of mel power, windows centred on multiples of hop, the signal mirrored at its ends (CLAP, Whisper).

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


def fill(audio_BN: Tensor, samples: int, how: str) -> Tensor:
    """Audio [B, N] -> [B, samples], N <= samples, by the names CLAP's feature extractor has.

    "repeatpad": as many whole repeats as fit, then zeros; "repeat": repeats, cut; "pad": zeros.
    """
    length = audio_BN.shape[1]
    if how == "repeat":
        return audio_BN.repeat(1, -(-samples // length))[:, :samples]
    if how == "repeatpad":
        audio_BN = audio_BN.repeat(1, samples // length)
    return F.pad(audio_BN, (0, samples - audio_BN.shape[1]))


def whisper_range(log_BTC: Tensor) -> Tensor:
    """log10 mel power [B, T, C] -> 80 dB below the loudest value of each clip, about [-1, 1]."""
    return (torch.maximum(log_BTC, log_BTC.amax((1, 2), keepdim=True) - 8) + 4) / 4
