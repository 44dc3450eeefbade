"""Metrics of one clip against its reference: log-spectral distance, SI-SDR and SNR.

All functions take floating-point audio [N] or [B, N] and return float64 of shape [] or [B], one
value per clip; averaging over clips, and leaving some out, is up to the caller. Sums are float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stagecli.metrics.checks import checked_pair
from stagecli.metrics.cutoffs import split_bin
from stagecli.metrics.lsd_presets import LSDPreset, preset_of
from stagecli.metrics.stft import spectra_in_blocks

# Energy left after removing the mean, relative to before, that is rounding and not signal.
_SILENCE = 1e-24


def _preset(preset: str | LSDPreset) -> LSDPreset:
    return preset if isinstance(preset, LSDPreset) else preset_of(preset)


def _difference(reference: Tensor, estimate: Tensor, preset: LSDPreset) -> Tensor:
    """The preset's d, elementwise, of two complex spectra of the same shape."""
    if preset.form == "clamp":
        power_x, power_y = (z.real.square() + z.imag.square() for z in (reference, estimate))
        return (power_x.clamp_min_(preset.floor) / power_y.clamp_min_(preset.floor)).log10()
    if preset.form == "add":
        power_x, power_y = (z.real.square() + z.imag.square() for z in (reference, estimate))
        return ((power_x + preset.floor) / (power_y + preset.floor)).log10()
    ratio = (reference.abs() / (estimate.abs() + preset.floor)).square()
    return (ratio + preset.floor).log10()


def _band_distances(
    reference: Tensor,
    estimate: Tensor,
    sample_rate: int,
    split_hz: float | None,
    preset: str | LSDPreset,
) -> list[Tensor]:
    """Mean over frames of sqrt(mean over bins of d^2): all bins, then with a split high and low."""
    # Check the pair and choose the bins of each band.
    chosen = _preset(preset)
    if sample_rate <= 0:
        raise ValueError(f"sample_rate must be positive, got {sample_rate}")
    pair = checked_pair(reference, estimate)
    n_fft, hop = chosen.sizes(sample_rate)
    num_samples = reference.shape[-1]
    half = n_fft // 2
    if num_samples <= half:
        raise ValueError(
            f"too few samples ({num_samples}) for LSD {chosen.name}: more than {half} are needed"
        )
    bands = [slice(None)]
    if split_hz is not None:
        split = split_bin(n_fft, sample_rate, split_hz)
        bands += [slice(split, None), slice(None, split)]

    # Sum over frames, a block at a time.
    window = torch.hann_window(n_fft, dtype=torch.float64, device=reference.device)
    totals = [torch.zeros((), device=reference.device) for _ in bands]
    frames = 0
    for x_BFT, y_BFT in spectra_in_blocks(*pair, n_fft, hop, window, pad_mode=chosen.pad_mode):
        squared_BFT = _difference(x_BFT, y_BFT, chosen).square()
        totals = [
            total + squared_BFT[:, band].mean(1).sqrt().sum(1)
            for total, band in zip(totals, bands, strict=True)
        ]
        frames += x_BFT.shape[2]
    return [(total / frames).reshape(reference.shape[:-1]) for total in totals]


def lsd(
    reference: Tensor, estimate: Tensor, sample_rate: int, preset: str | LSDPreset = "nuwave"
) -> Tensor:
    """Log-spectral distance, log10-power units (times 10 for dB), lower is better.

    reference, estimate: [N] or [B, N] at `sample_rate` Hz. Gain counts: LSD(g x, x) = 2 |log10 g|
    above the floor; match the gain first if that is not wanted. Silence: `nuwave` gives 0 for two
    silent clips; `ssr_eval`, as published, gives 12 for every frame in which the reference is
    exactly zero, whatever the estimate, so zero-padded clips score high even if perfect.
    Raises ValueError: shapes differ, empty, not finite, integer samples, too short, unknown preset.
    """
    return _band_distances(reference, estimate, sample_rate, None, preset)[0]


def lsd_bands(
    reference: Tensor,
    estimate: Tensor,
    sample_rate: int,
    split_hz: float,
    preset: str | LSDPreset = "nuwave",
) -> dict[str, Tensor]:
    """`lsd`, and the same over the bins from `split_hz` up ("lsd_hf") and below it ("lsd_lf").

    split_hz: the Nyquist frequency of the low-resolution input, Hz. One transform serves all three.
    Raises ValueError as `lsd`, and if one of the bands would be empty.
    """
    names = ("lsd", "lsd_hf", "lsd_lf")
    return dict(
        zip(names, _band_distances(reference, estimate, sample_rate, split_hz, preset), strict=True)
    )


def _decibel(signal: Tensor, noise: Tensor, silent: Tensor) -> Tensor:
    """10 log10(signal / noise) per clip, nan where the reference is silent."""
    return (10 * (signal / noise).log10()).masked_fill(silent, float("nan"))


def si_sdr(reference: Tensor, estimate: Tensor, zero_mean: bool = False) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, higher is better (Le Roux et al., 2019).

    reference, estimate: [N] or [B, N]; zero_mean: remove each clip's mean first (state it, because
    tools differ). Silence: nan for a silent reference, which the caller leaves out and counts; -inf
    for an estimate that is silent or orthogonal to the reference; +inf for an exact scaled copy.
    Raises ValueError: shapes differ, empty, not finite, integer samples.
    """
    x, y = checked_pair(reference, estimate)
    floor_x, floor_y = (_SILENCE * z.square().sum(-1) for z in (x, y))
    if zero_mean:
        x, y = (z - z.mean(-1, keepdim=True) for z in (x, y))
    energy = x.square().sum(-1)
    silent = energy <= floor_x
    scale = (x * y).sum(-1) / energy.masked_fill(silent, 1.0)
    target = scale[..., None] * x
    result = _decibel(target.square().sum(-1), (target - y).square().sum(-1), silent)
    return result.masked_fill((y.square().sum(-1) <= floor_y) & ~silent, float("-inf"))


def snr(reference: Tensor, estimate: Tensor) -> Tensor:
    """Signal-to-noise ratio 10 log10(sum x^2 / sum (x - y)^2) in dB, higher is better.

    reference, estimate: [N] or [B, N]. nan for a silent reference, which the caller leaves out; 0
    for a silent estimate; +inf for an exact copy. Raises ValueError as `si_sdr`.
    """
    x, y = checked_pair(reference, estimate)
    energy = x.square().sum(-1)
    return _decibel(energy, (x - y).square().sum(-1), energy == 0)
