"""Spectra of clip pairs in bounded memory, and STFT distances of clip pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecli.metrics.checks import checked_pair

VALUES_PER_BLOCK = 2**21  # complex128 values of one signal in memory at a time: 32 MiB
# n_fft, hop, window in samples: the defaults of auraloss, from Parallel WaveGAN.
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
_POWER_FLOOR = 1e-8


def spectra_in_blocks(
    reference: Tensor,
    estimate: Tensor,
    n_fft: int,
    hop: int,
    window: Tensor,
    *,
    pad_mode: Literal["reflect", "constant"] = "reflect",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Complex spectra [B, F, T] of both signals, some frames T at a time; [N] or [B, N], float64.

    Frames are centred on k * hop, ends extended by n_fft // 2 samples; `window` [W], W <= n_fft, is
    centred in its frame. A clip of any length takes at most VALUES_PER_BLOCK complex values of each
    signal at a time. Raises ValueError if the clip is too short to be reflected.
    """
    num_samples = reference.shape[-1]
    half = n_fft // 2
    if num_samples <= half:
        raise ValueError(
            f"too few samples ({num_samples}) for a window of {n_fft}: more than {half} are needed"
        )
    x_BN, y_BN = (
        F.pad(z.reshape(-1, num_samples), (half, half), mode=pad_mode)
        for z in (reference, estimate)
    )
    frames = 1 + (x_BN.shape[1] - n_fft) // hop
    block = max(1, VALUES_PER_BLOCK // ((half + 1) * x_BN.shape[0]))
    for first in range(0, frames, block):
        part = slice(first * hop, (min(first + block, frames) - 1) * hop + n_fft)
        x_BFT, y_BFT = (
            torch.stft(
                z[:, part], n_fft, hop, len(window), window, center=False, return_complex=True
            )
            for z in (x_BN, y_BN)
        )
        yield x_BFT, y_BFT


def _magnitude(spectrum: Tensor) -> Tensor:
    """sqrt(max(|X|^2, 1e-8))."""
    power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
    return power.clamp_min_(_POWER_FLOOR).sqrt_()


def _terms(x_BN: Tensor, y_BN: Tensor, n_fft: int, hop: int, size: int) -> tuple[Tensor, Tensor]:
    """Spectral convergence and mean |ln X - ln Y| per clip [B], at one resolution."""
    window = torch.hann_window(size, dtype=torch.float64, device=x_BN.device)
    error, energy, log_error, count = (x_BN.new_zeros(x_BN.shape[0]) for _ in range(4))
    for spectra in spectra_in_blocks(x_BN, y_BN, n_fft, hop, window):
        x, y = (_magnitude(z) for z in spectra)
        error = error + (x - y).square_().sum((1, 2))
        energy = energy + x.square().sum((1, 2))
        log_error = log_error + (x / y).log_().abs_().sum((1, 2))
        count = count + x[0].numel()
    silent = (x_BN == 0).all(1)
    return (error / energy).sqrt().masked_fill(silent, float("nan")), log_error / count


def _rows(reference: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    x, y = checked_pair(reference, estimate)
    return x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])


@torch.no_grad()
def spectral_convergence(
    reference: Tensor, estimate: Tensor, n_fft: int = 2048, hop: int = 512
) -> Tensor:
    """|| |X| - |Y| ||_F / || |X| ||_F of STFT magnitudes, X the reference; lower is better.

    reference, estimate: [N] or [B, N]; gives [] or [B], one value per clip (auraloss takes the norm
    over the whole batch, so its value depends on the batch). Arik et al., 2018; Hann window of
    n_fft, magnitudes sqrt(max(|X|^2, 1e-8)) as in auraloss, reflected ends. Loud bins dominate, so
    high frequencies hardly count. 1 for a silent estimate, |1 - g| for g x, nan for a reference of
    zeros, which the caller leaves out.
    Raises ValueError: shapes differ, empty, not finite, integer samples, too short.
    """
    x_BN, y_BN = _rows(reference, estimate)
    return _terms(x_BN, y_BN, n_fft, hop, n_fft)[0].reshape(reference.shape[:-1])


@torch.no_grad()
def multi_resolution_stft(reference: Tensor, estimate: Tensor) -> dict[str, Tensor]:
    """Multi-resolution STFT distance (Yamamoto et al., 2020).

    reference, estimate: [N] or [B, N] at any rate; each value [] or [B], one per clip, in float64.
    "mr_stft_sc" and "mr_stft_log" are the means over three resolutions (`RESOLUTIONS`, Hann
    windows, reflected ends) of the spectral convergence and of the mean |ln |X| - ln |Y||,
    magnitudes sqrt(max(|X|^2, 1e-8)); "mr_stft" is their sum. Equal to `MultiResolutionSTFTLoss` of
    auraloss 0.4 for a batch of one.
    Resolutions are in samples, so values at different sample rates are not comparable. nan for a
    reference of zeros.
    Raises ValueError: shapes differ, empty, not finite, integer samples, 1024 samples or fewer.
    """
    x_BN, y_BN = _rows(reference, estimate)
    terms = [_terms(x_BN, y_BN, *resolution) for resolution in RESOLUTIONS]
    convergence, logarithm = (
        torch.stack(part).mean(0).reshape(reference.shape[:-1]) for part in zip(*terms, strict=True)
    )
    return {"mr_stft": convergence + logarithm, "mr_stft_sc": convergence, "mr_stft_log": logarithm}
