"""Distances between two sets of clips: the Frechet distance, and an embedding that needs no trained model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

_WINDOW_SECONDS = 0.04
# -80 dB: at 1e-10 the digital silence that clips are padded with ruled the distance (a codec round trip of
# the reference came to 571 on FSDD, against 8.8 here), as no decoder gives exact zeros.
_POWER_FLOOR = 1e-8


@dataclass(frozen=True)
class FrechetDistance:
    """value: squared units of the embedding; n, m: clips of x and of y; dim: D.

    biased: a set has no more clips than dimensions, so its covariance is singular and the sample size
    dominates the value. Below that the bias is still there and falls as 1/n: compare equal n only.
    """

    value: float
    n: int
    m: int
    dim: int
    biased: bool


def _embeddings(values: Tensor | npt.NDArray[Any], name: str) -> Tensor:
    """[N, D] as float64 on the CPU; ValueError unless finite, two-dimensional and of at least two rows."""
    values_ND = torch.as_tensor(values).detach().to("cpu", torch.float64)
    if values_ND.ndim != 2 or values_ND.shape[0] < 2 or values_ND.shape[1] < 1:
        raise ValueError(f"{name} must be [N, D] with at least two clips, got {tuple(values_ND.shape)}")
    if not bool(torch.isfinite(values_ND).all()):
        raise ValueError(f"{name} contains NaN or infinite values")
    return values_ND


def _moments(values_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D] with ddof=1."""
    mean_D = values_ND.mean(0)
    centred_ND = values_ND - mean_D
    return mean_D, centred_ND.T @ centred_ND / (values_ND.shape[0] - 1)


def frechet_distance(x_ND: Tensor | npt.NDArray[Any], y_MD: Tensor | npt.NDArray[Any]) -> FrechetDistance:
    """Frechet distance of two Gaussians fitted to x [N, D] and y [M, D] (Dowson and Landau, 1982).

    |mu_x - mu_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), in float64. The trace of the root is that of the
    symmetric C_x^(1/2) C_y C_x^(1/2), by two symmetric eigendecompositions: real and never negative
    where a general matrix square root of C_x C_y turns complex.
    Raises ValueError: not [N, D], fewer than two clips, different D, NaN or infinite values.
    """
    x, y = _embeddings(x_ND, "x"), _embeddings(y_MD, "y")
    dim = x.shape[1]
    if y.shape[1] != dim:
        raise ValueError(f"x and y have different dimensions: {dim} and {y.shape[1]}")
    (mean_x, cov_x), (mean_y, cov_y) = _moments(x), _moments(y)
    values_D, vectors_DD = torch.linalg.eigh(cov_x)
    root_x = (vectors_DD * values_D.clamp_min(0).sqrt()) @ vectors_DD.T
    product = root_x @ cov_y @ root_x
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    value = (mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * cross
    n, m = x.shape[0], y.shape[0]
    return FrechetDistance(max(float(value), 0.0), n, m, dim, min(n, m) <= dim)


def _mel_filters(sample_rate: int, n_fft: int, bands: int) -> Tensor:
    """Triangles [F, C], 0 Hz to Nyquist, equally spaced in HTK mel 2595 log10(1 + f / 700), each of sum 1."""
    top_mel = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top_mel, bands + 2, dtype=torch.float64) / 2595) - 1)
    bins_F1 = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    filters_FC = torch.minimum((bins_F1 - low) / (centre - low), (high - bins_F1) / (high - centre)).clamp_min(0)
    total_C = filters_FC.sum(0)
    if bool((total_C == 0).any()):
        raise ValueError(f"{bands} mel bands are too many at {sample_rate} Hz: some hold no frequency bin")
    return filters_FC / total_C


@torch.no_grad()
def log_mel_statistics(audio_BN: Tensor, sample_rate: int, bands: int = 64) -> Tensor:
    """Embedding [B, 2 * bands] of audio [B, N] at `sample_rate` Hz: mean and std over time of log-mel bands.

    Deterministic and needs no weights: it sees spectral balance and how much it moves, not meaning, so call
    the distance on it "Frechet distance on log-mel statistics", never FAD. Values are natural logarithms of
    the mean power per bin in a band (white noise of variance v: about ln v at any rate), floored at 1e-8;
    window: Hann of the power of two from 40 ms up, hop a quarter of it, reflected ends; std with ddof=0.
    A silent clip gives ln(1e-8) for every mean and 0 for every std. Compare clips of one sample rate only.
    Raises ValueError: not [B, N], too short for one window, NaN or infinite, too many bands for the rate.
    """
    if audio_BN.ndim != 2 or audio_BN.shape[0] == 0 or not audio_BN.is_floating_point():
        raise ValueError(f"audio must be floating point [B, N], got {audio_BN.dtype} {tuple(audio_BN.shape)}")
    if sample_rate <= 0 or bands < 1:
        raise ValueError(f"sample_rate and bands must be positive, got {sample_rate} and {bands}")
    n_fft = 2 ** math.ceil(math.log2(max(2.0, _WINDOW_SECONDS * sample_rate)))
    if audio_BN.shape[1] <= n_fft // 2:
        raise ValueError(f"{audio_BN.shape[1]} samples are too few: more than {n_fft // 2} are needed")
    if not bool(torch.isfinite(audio_BN).all()):
        raise ValueError("the audio contains NaN or infinite samples")
    window = torch.hann_window(n_fft, dtype=torch.float64, device=audio_BN.device)
    filters_FC = _mel_filters(sample_rate, n_fft, bands).to(audio_BN.device)
    rows: list[Tensor] = []
    for audio_N in audio_BN:  # one at a time: the embedding of a clip cannot depend on its batch
        spectrum_FT = torch.stft(
            audio_N.double(), n_fft, n_fft // 4, window=window, pad_mode="reflect", return_complex=True
        )
        power_TF = (spectrum_FT.real.square() + spectrum_FT.imag.square()).T / window.square().sum()
        log_TC = (power_TF @ filters_FC).clamp_min(_POWER_FLOOR).log()
        rows.append(torch.cat([log_TC.mean(0), log_TC.std(0, correction=0)]))
    return torch.stack(rows)
